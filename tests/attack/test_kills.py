"""kill -9 at random moments of submits and deletes: names and voxels are of one submission."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esp_medsam_app.server.local_datastore import SafeDatastore

KILLS = 150
LONGEST_SECONDS = 0.02
# in memory the disk is not waited for, so that more of the kills hit what happens in between
MEMORY = Path("/dev/shm")


def opened(folder: Path) -> SafeDatastore:
    return SafeDatastore(str(folder), extensions=["*.png", "*.tif"])


def submit_and_delete(folder: Path, drawn: dict[str, list[Path]], seed: int, started: int) -> None:
    """Until it is killed: labels of ever another value, whose info says which."""
    chosen = random.Random(seed)
    store = opened(folder)
    os.write(started, b".")
    for number in count():
        image = chosen.choice(["a", "b"])
        there = store.get_labels_by_image_id(image)
        if there and chosen.random() < 0.3:
            store.remove_label(image, "final")
            continue
        value = chosen.randrange(1, 200)
        files = drawn[chosen.choice([".png", ".tif"])]
        info = {"value": value, "label_info": [{"name": f"segment {value}", "idx": value}]}
        store.save_label(image, str(files[value]), "final", {**info, "number": number})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """A label map of each value, in two formats."""
    folder = tmp_path_factory.mktemp("drawn")
    found: dict[str, list[Path]] = {}
    for suffix in (".png", ".tif"):
        found[suffix] = [folder / f"{value}{suffix}" for value in range(200)]
        for value, path in enumerate(found[suffix]):
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    place = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        for image in "ab":
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{image}.png")
        opened(folder)
        yield folder


def test_names_and_voxels_are_of_one_submission(folder: Path, drawn: dict[str, list[Path]]) -> None:
    fork, chosen, seen = multiprocessing.get_context("fork"), random.Random(20), set()
    has_started, started = os.pipe()
    for kill in range(KILLS):
        worker = fork.Process(target=submit_and_delete, args=(folder, drawn, kill, started))
        worker.start()
        os.read(has_started, 1)
        time.sleep(chosen.uniform(0, LONGEST_SECONDS))
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        store = opened(folder)
        assert [*store.list_images()] == ["a", "b"]
        for image in "ab":
            there = store.get_labels_by_image_id(image)
            files = [*folder.glob(f"labels/final/{image}.*")]
            assert len(there) == len(files), f"kill {kill}: {files}"
            if there:
                check(Path(store.get_label_uri(image, "final")), store, image, kill)
                seen.add(store.get_label_info(image, "final")["value"])
            for version in store.label_versions(image, "final"):
                told = json.loads(version.with_suffix(".json").read_bytes())
                assert value_of(version) == told["value"], f"kill {kill}: {version}"
                version.unlink()
                version.with_suffix(".json").unlink()
        left = [path for path in folder.rglob(".*") if path.name != ".lock"]
        assert left == [], f"kill {kill}"
    os.close(started)
    os.close(has_started)
    # they were killed while they worked
    assert len(seen) > 20


def check(file: Path, store: SafeDatastore, image: str, kill: int) -> None:
    info = store.get_label_info(image, "final")
    assert info.get("value") == value_of(file), f"kill {kill}: {file}"
    assert info["label_info"] == [{"name": f"segment {info['value']}", "idx": info["value"]}]


def value_of(path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image).max())
