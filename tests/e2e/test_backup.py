"""A server works while its backup is written; another one goes on from it in a fresh place."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from support.discs import SIDE, draw_discs
from support.real_server import START_SECONDS
from support.small_starter import small_starter

from esp_medsam_app.server.data_folder import DataFolder
from esp_medsam_app.server.launch import FRONT_DOOR, app_folder, start_server
from esp_medsam_app.weights.bundle import load_bundle
from esp_medsam_app.weights.versions import open_versions

pytestmark = pytest.mark.e2e

MODEL, MODALITY = "esp_medsam_microscopy_nuclei", "microscopy_nuclei"
CASES = 4


@contextmanager
def serving(data: Path, studies: Path, bundle: Path) -> Iterator[str]:
    """A server as `serve --data DATA --studies STUDIES` starts it; its address."""
    home = DataFolder(data)
    home.prepare(app_folder())
    log = data / "log.txt"
    conf = {"device": "cpu", "bundle": str(bundle), "models": MODALITY}
    with log.open("wb") as output:
        server = start_server(
            home.app,
            str(studies),
            port=0,
            conf={**conf, "background_scores": "false"},
            environment=home.environment(),
            arguments=FRONT_DOOR,
            output=output.fileno(),
        )
    try:
        server.wait_until_ready(START_SECONDS)
        yield server.url
    finally:
        server.stop()
        print(log.read_text(errors="replace")[-5000:])


def rows_of(number: int) -> int:
    """How many rows the label of a submission has drawn."""
    return 1 + number % SIDE


def submit(url: str, case: str, number: int) -> None:
    drawn = np.zeros((SIDE, SIDE), np.uint8)
    drawn[: rows_of(number)] = 1
    content = io.BytesIO()
    Image.fromarray(drawn).save(content, "PNG")
    saved = requests.put(
        f"{url}/datastore/label",
        params={"image": case},
        data={"params": f'{{"model": "{MODEL}", "number": {number}}}'},
        files={"label": ("label.png", content.getvalue())},
        timeout=120,
    )
    assert saved.status_code == 200, saved.text


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_the_next_server_goes_on_where_the_backup_was(
    place: str, tmp_path: Path, command_line: Callable[..., Any]
) -> None:
    data = tmp_path / "data"
    studies = data / "studies" if place == "inside" else tmp_path / "hospital" / "images"
    drawn = draw_discs(tmp_path / "drawn", CASES)
    shutil.copytree(drawn / "images", studies)
    bundle = small_starter(tmp_path / "bundle")
    file, fresh = tmp_path / "medsam.tar.gz", tmp_path / "fresh"
    with serving(data, studies, bundle) as url:
        for case in range(CASES):
            submit(url, f"case{case}", 0)
        # what a training publishes
        base = load_bundle(bundle)
        store = open_versions(data / "app" / "model" / "versions", base)
        network = base.load_network([MODALITY])
        options: dict[str, Any] = {"parent": 0, "reason": "better"}
        store.add(network, base.modalities[MODALITY], state="published", **options)
        store.publish(MODALITY, 1)
        ended, last = threading.Event(), [0]

        def annotate() -> None:
            while not ended.is_set():
                submit(url, "case0", last[0] + 1)
                last[0] += 1

        thread = threading.Thread(target=annotate)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while last[0] < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            before = last[0]
            done = command_line("backup", "--data", data, "-o", file)
            after = last[0] + 1
        finally:
            ended.set()
            thread.join()
        assert done.returncode == 0, done.stderr
        # nobody was held up
        assert after > before + 1
    done = command_line("restore", file, "--data", fresh)
    assert done.returncode == 0, done.stderr
    assert f"--studies {fresh / 'studies'}" in done.stdout
    with serving(fresh, fresh / "studies", bundle) as url:
        told = requests.get(f"{url}/info/", timeout=60).json()["datastore"]
        assert (told["total"], told["completed"]) == (CASES, CASES)
        query = {"label": "case0", "tag": "final"}
        number = requests.get(f"{url}/datastore/label/info", params=query, timeout=60)
        assert before <= number.json()["number"] <= after
        label = requests.get(f"{url}/datastore/label", params=query, timeout=60).content
        rows = np.asarray(Image.open(io.BytesIO(label))).any(1).sum()
        # voxels and what is told of them are of the same submission
        assert rows == rows_of(number.json()["number"])
        (entry,) = requests.get(f"{url}/versions/", timeout=60).json()
        assert (entry["modality"], entry["serving"]) == (MODALITY, 1)
        mask = requests.post(f"{url}/infer/{MODEL}?image=case1&output=json", timeout=300)
        assert mask.json()["version"] == {"modality": MODALITY, "number": 1}
