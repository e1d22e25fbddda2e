"""A radiologist submits labels, the model learns, an admin goes back: with a real server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from PIL import Image
from support.discs import draw_discs
from support.real_server import START_SECONDS, copy_app
from support.small_starter import small_starter

from esp_medsam_app.server.launch import FRONT_DOOR, ServerProcess, start_server

pytestmark = pytest.mark.e2e

DISC, NUCLEI = "esp_medsam_disc", "esp_medsam_microscopy_nuclei"
YAML = "title: Disc\ndescription: A bright disc.\ndimension: 2\nlabels: [disc]\n"
LABELLED, UNSEEN = [f"case{n}" for n in range(5)], ["case5", "case6"]
QUICK = {"max_epochs": 12, "views": 24, "learning_rate": 2e-3, "tracking": "None"}
TRAINING_SECONDS = 900


class School:
    """The server, what it works on and the truth."""

    def __init__(self, process: ServerProcess, drawn: Path, app: Path) -> None:
        self.url = process.url
        self.drawn = drawn
        self.app = app

    def truth(self, case: str) -> np.ndarray:
        return np.asarray(Image.open(self.drawn / "labels" / f"{case}.png"))


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    """A server with a modality of its own that nobody has trained yet."""
    folder = tmp_path_factory.mktemp("school")
    drawn = draw_discs(folder / "drawn", 7)
    (folder / "modalities").mkdir()
    (folder / "modalities" / "disc.yaml").write_text(YAML)
    log = folder / "log.txt"
    with log.open("wb") as output:
        app = copy_app(folder)
        process = start_server(
            app,
            str(drawn / "images"),
            port=0,
            conf={
                "device": "cpu",
                "bundle": str(small_starter(folder / "bundle")),
                "background_scores": "false",
                "modalities": str(folder / "modalities"),
                "models": "disc,microscopy_nuclei",
            },
            arguments=FRONT_DOOR,
            environment={"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")},
            output=output.fileno(),
        )
    try:
        process.wait_until_ready(START_SECONDS)
        yield School(process, drawn, app)
    finally:
        process.stop()
        print(log.read_text(errors="replace")[-20_000:])


@pytest.fixture
def client(school: School, tmp_path: Path) -> MONAILabelClient:
    return MONAILabelClient(school.url, str(tmp_path), client_id="tests")


def mask(client: MONAILabelClient, model: str, case: str) -> tuple[bytes, dict[str, Any]]:
    file, params = client.infer(model, case, {"result_extension": ".png"})
    return Path(file).read_bytes(), params


def dice(client: MONAILabelClient, school: School, case: str) -> float:
    file, _ = client.infer(DISC, case, {"result_extension": ".png"})
    found, truth = np.asarray(Image.open(file)) > 0, school.truth(case) > 0
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def status(client: MONAILabelClient) -> dict[str, Any]:
    return dict(client.train_status())


def wait_for(client: MONAILabelClient, *states: str, line: str = "") -> dict[str, Any]:
    """Poll until the training is in one of these states, or its log has this line."""
    deadline = time.monotonic() + TRAINING_SECONDS
    while time.monotonic() < deadline:
        now = status(client)
        if now["status"] in states or (line and line in "\n".join(now.get("details", []))):
            return now
        assert now["status"] in ("SUBMITTED", "RUNNING"), now
        time.sleep(0.5)
    raise AssertionError(f"still {status(client)}")


def test_what_is_not_trained_says_so(client: MONAILabelClient) -> None:
    with pytest.raises(MONAILabelClientException) as caught:
        client.infer(DISC, "case0", {})
    assert "422" in caught.value.msg
    assert "not trained yet" in caught.value.msg


def test_without_labels_of_two_patients_nothing_is_started(
    client: MONAILabelClient, school: School
) -> None:
    for told in ("no label of disc", "of one patient"):
        with pytest.raises(MONAILabelClientException) as caught:
            client.train_start(DISC, QUICK)
        assert "422" in caught.value.msg
        assert told in caught.value.msg
        params = {"label_info": [{"name": "Disc", "idx": 1}], "model": DISC}
        client.save_label("case0", str(school.drawn / "labels" / "case0.png"), params=params)
    assert requests.get(f"{school.url}/train/", timeout=60).status_code == 404


def test_labels_make_the_model_and_an_admin_goes_back(
    client: MONAILabelClient, school: School
) -> None:
    nuclei, _ = mask(client, NUCLEI, "case5")
    for case in LABELLED:
        # the segment's name as a person types it
        params = {"label_info": [{"name": "Disc", "idx": 1}], "model": DISC, "client_id": "tests"}
        client.save_label(case, str(school.drawn / "labels" / f"{case}.png"), params=params)
    # with curves, as viewers ask for them
    client.train_start(DISC, {**QUICK, "tracking": "mlflow"})
    ended = wait_for(client, "DONE", "ERROR")
    assert ended["status"] == "DONE", "\n".join(ended["details"])
    assert (school.app / "model" / "training" / "mlflow.db").stat().st_size
    assert any("of 12: loss" in line for line in ended["details"])
    assert any("serves: mean Dice" in line for line in ended["details"])
    assert ended["result"].startswith("activated: version 1 serves (mean Dice")
    info = client.info()
    stats = next(iter(info["train_stats"].values()))
    assert stats["total_time"]
    assert stats["promotion"]["published"]

    first, params = mask(client, DISC, "case5")
    assert params["version"] == {"modality": "disc", "number": 1}
    assert np.mean([dice(client, school, case) for case in UNSEEN]) > 0.5
    assert mask(client, NUCLEI, "case5")[0] == nuclei

    versions = requests.get(f"{school.url}/versions/disc", timeout=60).json()
    assert json.dumps(versions).count('"number": 1') >= 1
    restore = f"{school.url}/versions/disc/restore"
    assert requests.post(restore, params={"number": 0}, timeout=60).status_code == 200
    with pytest.raises(MONAILabelClientException):
        client.infer(DISC, "case5", {})
    assert requests.post(restore, params={"number": 1}, timeout=60).status_code == 200
    assert mask(client, DISC, "case5")[0] == first


def test_a_killed_training_leaves_what_serves_and_the_next_one_starts(
    client: MONAILabelClient, school: School
) -> None:
    before, _ = mask(client, DISC, "case6")
    client.train_start(DISC, {**QUICK, "max_epochs": 50, "early_stop_patience": 0})
    wait_for(client, line="Epoch 1 of 50")
    client.train_stop()
    assert status(client)["status"] == "STOPPED"
    assert mask(client, DISC, "case6")[0] == before
    client.train_start(DISC, {**QUICK, "max_epochs": 1, "margin": 0.9})
    ended = wait_for(client, "DONE", "ERROR")
    assert ended["status"] == "DONE", "\n".join(ended["details"])
    assert any("kept back" in line for line in ended["details"])
    assert re.match(r"not activated, because mean Dice .* a rise of more than", ended["result"])
    assert mask(client, DISC, "case6")[0] == before


def test_labels_are_submitted_while_a_scoring_runs_and_none_is_lost(
    client: MONAILabelClient, school: School
) -> None:
    """MONAI Label's own datastore forgets what is submitted while its scoring process runs."""

    def submit(case: str, tag: str, number: int) -> None:
        params = {"label_info": [{"name": "Disc", "idx": 1}], "model": DISC, "number": number}
        client.save_label(case, str(school.drawn / "labels" / f"{case}.png"), tag, params)

    def ask(method: str, path: str, **params: Any) -> requests.Response:
        return requests.request(method, f"{school.url}{path}", params=params, timeout=60)

    for case in LABELLED:
        submit(case, "final", 0)
        submit(case, "original", 0)
    # in a process of its own, which computes the Dice of all images and writes them down
    assert ask("POST", "/scoring/dice").status_code == 200
    rounds = 0
    deadline = time.monotonic() + TRAINING_SECONDS
    while (ended := ask("GET", "/scoring/").json())["status"] in ("SUBMITTED", "RUNNING"):
        rounds += 1
        for case in LABELLED:
            submit(case, "final", rounds)
        assert time.monotonic() < deadline
    assert rounds
    assert ended["status"] == "DONE", ended
    for case in LABELLED:
        info = ask("GET", "/datastore/label/info", label=case, tag="final").json()
        assert info["number"] == rounds
        assert info["label_info"] == [{"name": "disc", "idx": 1}]
        assert ask("GET", "/datastore/image/info", image=case).json()["dice"] == 1
