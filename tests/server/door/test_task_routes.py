"""Trainings, batches and scorings: checked before they start, and one at a time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from monailabel.utils.async_tasks import task as async_task
from monailabel.utils.async_tasks import utils
from PIL import Image
from support.fake_server import ORGANS, SPOTS

from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.door import task_routes

TRAIN = "/train/esp_medsam_ct_organs"
STARTED = list[tuple[dict[str, Any], str]]


@pytest.fixture
def started(app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch) -> STARTED:
    """What would have been started, by MONAI Label's own function; nothing is."""
    found: STARTED = []

    def run(request: dict[str, Any], method: str, *_: Any) -> dict[str, Any]:
        found.append((request, method))
        task = {"id": str(len(found)), "status": "SUBMITTED", "request": request}
        utils.background_tasks.setdefault(method, []).append(task)
        return task

    trainer = SimpleNamespace(info=dict, stats=dict, check_labels=lambda datastore: None)
    trainers = {"esp_medsam_ct_organs": trainer, "esp_medsam_spots": trainer}
    monkeypatch.setattr(app, "_trainers", trainers)
    monkeypatch.setattr(async_task, "run_background_task", run)
    return found


def test_a_training_starts_once(
    door: TestClient, started: STARTED, audited: Callable[[], Any]
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: door.post(TRAIN, json={"max_epochs": 3}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [429] * 7
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "already running" in refused.json()["detail"]
    assert refused.headers["retry-after"]
    ((request, method),) = started
    assert (method, request["model"], request["max_epochs"]) == (
        "train", "esp_medsam_ct_organs", 3,
    )  # fmt: skip
    assert [line["action"] for line in audited()] == ["train.start"]
    assert door.post(TRAIN, params={"enqueue": True}).status_code == 200
    assert len(started) == 2


def test_a_training_may_start_when_the_one_before_has_ended(
    door: TestClient, started: STARTED
) -> None:
    for state in ("SUBMITTED", "RUNNING", "DONE", "ERROR", "STOPPED"):
        utils.background_tasks["train"] = [{"id": "0", "status": state}]
        running = state in ("SUBMITTED", "RUNNING")
        assert door.post(TRAIN).status_code == (429 if running else 200)


@pytest.mark.xfail(strict=True, reason="MONAI Label 0.8.5 starts it until the process is there")
def test_in_monai_label_a_training_starts_twice(client: TestClient, started: STARTED) -> None:
    client.post(TRAIN)
    client.post(TRAIN)
    assert len(started) == 1


def test_what_waits_for_its_process_runs_already(either: TestClient, started: STARTED) -> None:
    """Slicer and OHIF ask for it a moment after the start, and would offer to start it again."""
    either.post(TRAIN)
    assert either.get("/train/", params={"check_if_running": True}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("train", "/train/"), ("batch_infer", "/batch/infer"), ("scoring", "/scoring/")],
)
def test_how_it_goes(door: TestClient, started: STARTED, method: str, path: str) -> None:
    running = {"check_if_running": True}
    for query in ({}, {"all": True}, running):
        refused = door.get(path, params=query)
        assert refused.status_code == 404
        assert refused.json()["detail"]
    states = ("DONE", "SUBMITTED", "RUNNING", "SUBMITTED")
    found = [{"id": str(n), "status": state} for n, state in enumerate(states)]
    found[2]["details"] = deque(["a line"], maxlen=20)  # type: ignore[assignment]
    utils.background_tasks[method] = found
    assert [task["id"] for task in door.get(path, params={"all": True}).json()] == list("0123")
    # the one that runs, whether only that is asked for or not
    for query in ({}, running):
        now = door.get(path, params=query).json()
        assert (now["id"], now["status"], now["details"]) == ("2", "RUNNING", ["a line"])
        assert [task["id"] for task in now["queue"]] == ["1", "3"]
    for task in found[1:]:
        task["status"] = "STOPPED"
    assert door.get(path, params=running).status_code == 404
    ended = door.get(path).json()
    # of the others it was never the turn
    assert (ended["id"], ended["status"], ended["queue"]) == ("2", "STOPPED", [])


@pytest.mark.parametrize(
    ("status", "details", "result"),
    [("DONE", ["a", "Result of the training: activated: version 2 serves (better)", "b"],
      "activated: version 2 serves (better)"),
     ("DONE", [], "not activated, because the training told no result"),
     ("ERROR", ["a", "no memory"], "not activated, because the training failed: no memory"),
     ("STOPPED", ["a"], "not activated, because the training was stopped"),
     ("RUNNING", ["Result of the training: activated"], None), ("SUBMITTED", [], None)],
)  # fmt: skip
def test_what_became_of_a_training(
    door: TestClient, started: STARTED, status: str, details: list[str], result: str | None
) -> None:
    task = {"id": "0", "status": status, "details": deque(details)}
    utils.background_tasks["train"] = [task]
    assert door.get("/train/").json()["result"] == result
    assert door.get("/train/?all=true").json()[0]["result"] == result


@pytest.mark.parametrize(
    "path", ["/train/esp_medsam_knee", "/batch/infer/esp_medsam_knee", "/scoring/wisest"]
)
def test_what_is_unknown_is_not_started(either: TestClient, started: STARTED, path: str) -> None:
    answer = either.post(path)
    assert answer.status_code == 404
    assert "Available" in answer.json()["detail"]
    assert started == []


def test_clients_do_not_say_what_only_the_server_may(either: TestClient, started: STARTED) -> None:
    """`bundle_path` would become a part of the process's PYTHONPATH."""
    forged = {
        "bundle_path": "/tmp", "local_rank": 3, "model": "esp_medsam_spots", "method": "x",
    }  # fmt: skip
    either.post(TRAIN, json=forged)
    ((request, _),) = started
    assert request["model"] == "esp_medsam_ct_organs"
    assert not {"bundle_path", "local_rank", "method"} & set(request)


@pytest.mark.parametrize(
    "params",
    [{"max_epochs": "many"}, {"max_epochs": 0}, {"val_split": 2}, {"gpus": "../x"}, {"gpus": [0]},
     {"tracking_uri": "file:///etc"}, {"tracking_uri": "/tmp/x"}, {"device": "\0"},
     {"a": {"b": {"c": "\ud800"}}}],
)  # fmt: skip
def test_bad_parameters_are_told_at_once(
    door: TestClient, started: STARTED, params: dict[str, Any]
) -> None:
    import json

    answer = door.post(
        TRAIN, content=json.dumps(params), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert "params" in answer.json()["detail"]
    assert started == []


@pytest.mark.parametrize(
    "params", [{"label_tag": []}, {"label_tag": 3}, {"labels": "a"}, {"labels": [{}]}]
)
def test_the_next_image_of_what_makes_no_sense(door: TestClient, params: dict[str, Any]) -> None:
    assert door.post("/activelearning/random", json=params).status_code == 422


def test_ohif_is_told_why_there_is_nothing_for_it(door: TestClient) -> None:
    assert door.post("/activelearning/first?viewer=else").status_code == 422
    nothing = door.post("/activelearning/first?viewer=ohif")
    assert nothing.status_code == 404
    assert "none of the 2 images" in nothing.json()["detail"]


def test_the_address_says_the_strategy(door: TestClient, studies: Path) -> None:
    for _ in range(2):
        answer = door.post("/activelearning/first", json={"strategy": ["wisest"], "client_id": {}})
        assert answer.json()["id"] in ("case", "photo")
        # nor can what somebody tells of an image stop the strategies
        told = {"info": '{"strategy": 3, "ts": "x", "seen": true}'}
        assert door.put("/datastore/image/info?image=case", data=told).status_code == 200
    assert door.post("/activelearning/random").status_code == 200
    info = door.get("/datastore/image/info?image=case").json()
    assert info["seen"] is True
    assert isinstance(info["ts"], int)
    assert door.delete("/datastore/image?id=case").status_code == 200


@pytest.mark.parametrize("body", ["[]", "3", '"x"', "{", "nul", "NaN", '"\\ud800"', "[" * 3000])
def test_a_body_that_is_no_mapping(door: TestClient, started: STARTED, body: str) -> None:
    paths = [TRAIN, "/batch/infer/esp_medsam_spots", "/scoring/sum", "/activelearning/random"]
    for path in [*paths, "/train/", "/scoring/"]:
        answer = door.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.json()["detail"]
    assert started == []


def test_trainings_are_never_a_part_of_the_server(door: TestClient, started: STARTED) -> None:
    for path in (TRAIN, "/train/"):
        assert door.post(path, params={"run_sync": True}).status_code == 422
    assert started == []


def test_ohif_trains_one_after_another(door: TestClient, started: STARTED) -> None:
    told = door.post("/train/", json={"esp_medsam_spots": {"max_epochs": 5}}).json()
    assert list(told) == ["esp_medsam_spots"]
    assert started[0][0]["max_epochs"] == 5
    assert list(door.post("/train/").json()) == ["esp_medsam_ct_organs", "esp_medsam_spots"]
    assert len(started) == 3


def test_ohif_trains_what_has_new_labels(
    door: TestClient, app: EspMedSamApp, started: STARTED, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its button knows no models: it would train all of them."""
    organs, spots = "esp_medsam_ct_organs", "esp_medsam_spots"

    def trainer(modality: Modality) -> SimpleNamespace:
        models = frozenset([organs, spots])
        return SimpleNamespace(
            info=dict, stats=dict, modality=modality, models=models, last_start=lambda: 0.0,
            check_labels=lambda datastore: None,
        )  # fmt: skip

    monkeypatch.setattr(app, "_trainers", {organs: trainer(ORGANS), spots: trainer(SPOTS)})
    refused = door.post("/train/?new_labels=true", json={})
    assert refused.status_code == 422
    assert "no label has been submitted" in refused.json()["detail"]
    assert started == []
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "label.png")
    app.datastore().save_label("photo", str(tmp_path / "label.png"), "final", {"model": spots})
    assert list(door.post("/train/?new_labels=true", json={}).json()) == [spots]
    # what somebody has set options for in OHIF is asked for by its name
    named = {organs: {"max_epochs": 5}}
    assert list(door.post("/train/?new_labels=true", json=named).json()) == [organs]
    # other clients get what they always got
    assert list(door.post("/train/").json()) == [organs, spots]


def check(message: str) -> Callable[[Any], None]:
    def refuse(datastore: Any) -> None:
        raise InputError(message)

    return refuse


def test_what_has_too_few_labels_is_refused_at_once(
    door: TestClient, app: EspMedSamApp, started: STARTED, audited: Callable[[], Any]
) -> None:
    app._trainers["esp_medsam_ct_organs"] = SimpleNamespace(
        info=dict, stats=dict, check_labels=check("no label of ct_organs has been submitted yet")
    )
    for path, body in ((TRAIN, {}), ("/train/", {"esp_medsam_ct_organs": {}})):
        refused = door.post(path, json=body)
        assert refused.status_code == 422
        assert "no label of ct_organs" in refused.json()["detail"]
    assert started == audited() == []
    # of all models, those that can
    told = door.post("/train/").json()
    assert told["esp_medsam_ct_organs"]["result"] is None
    assert "no label of ct_organs" in told["esp_medsam_ct_organs"]["detail"]
    assert [request["model"] for request, _ in started] == ["esp_medsam_spots"]
    app._trainers["esp_medsam_spots"] = app._trainers["esp_medsam_ct_organs"]
    assert door.post("/train/").status_code == 422


def test_the_model_that_was_run_is_noted(door: TestClient, app: EspMedSamApp) -> None:
    for model, query in (("esp_medsam_spots", ""), ("esp_medsam_ct_organs", "&output=json")):
        path = f"/infer/{model}?image=photo{query}"
        assert door.post(path, data={"params": '{"any_image": true}'}).status_code in (200, 422)
    assert app.active_learning.used_models() == {"photo": "esp_medsam_ct_organs"}
    kept = {"params": '{"save_label": true}'}
    assert door.post("/infer/esp_medsam_spots?image=photo", data=kept).status_code == 200
    assert app.active_learning.used_models() == {"photo": "esp_medsam_ct_organs"}


@pytest.mark.parametrize(
    ("params", "status"),
    [({"images": ["case"]}, 200), ({"images": ["nobody"]}, 404), ({"images": [3]}, 422),
     ({"images": 3}, 422), ({"images": "some"}, 422), ({"images": "unlabeled"}, 200),
     ({"max_workers": "many"}, 422), ({"max_workers": -1}, 422), ({"device": "tpu"}, 422),
     ({"label_prompt": {}}, 422)],
)  # fmt: skip
def test_a_batch_is_checked(
    door: TestClient, started: STARTED, params: dict[str, Any], status: int
) -> None:
    answer = door.post("/batch/infer/esp_medsam_spots", json=params)
    assert answer.status_code == status
    assert len(started) == (status == 200)
    if started:
        assert started[0][0]["save_label"] is True


def test_one_batch_and_one_scoring_at_a_time(
    door: TestClient, started: STARTED, audited: Callable[[], Any]
) -> None:
    for path in ("/batch/infer/esp_medsam_spots", "/scoring/sum"):
        assert door.post(path).status_code == 200
        assert door.post(path).status_code == 429
    assert [line["action"] for line in audited()] == ["batch.start"]
    assert door.delete("/batch/infer").status_code == 200
    assert door.delete("/train/").json() is None
    assert door.delete("/scoring/").status_code == 200


def test_a_batch_in_the_server_itself(door: TestClient, started: STARTED) -> None:
    answers = door.post("/batch/infer/esp_medsam_spots", params={"run_sync": True}).json()
    assert answers["photo"]["label"] == "photo"
    assert not threading.current_thread().name.startswith("request")
    scores = door.post("/scoring/sum", params={"run_sync": True})
    assert scores.status_code == 200


def test_a_training_that_begins_this_moment_is_stopped(
    door: TestClient, app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI Label finds no process yet, stops nothing, and the training goes on."""
    asked = threading.Event()
    killed = []
    tasks = utils.tasks

    def noticed(method: str) -> Any:
        asked.set()
        return tasks(method)

    def work(task: dict[str, Any], method: str, *_: Any) -> None:
        assert asked.wait(30)
        process = SimpleNamespace(pid=os.getpid(), kill=lambda: killed.append(task["id"]))
        utils.background_processes[method][task["id"]] = process
        task["status"] = "RUNNING"

    trainer = SimpleNamespace(info=dict, stats=dict, check_labels=lambda datastore: None)
    monkeypatch.setattr(app, "_trainers", {"esp_medsam_ct_organs": trainer})
    monkeypatch.setattr(utils, "_task_func", work)
    monkeypatch.setattr(utils, "background_executors", {})
    monkeypatch.setattr(
        utils.psutil, "Process", lambda pid: SimpleNamespace(children=lambda **_: [])
    )
    task = door.post(TRAIN, params={"enqueue": True}).json()
    monkeypatch.setattr(task_routes, "tasks", noticed)
    assert door.delete("/train/").json()["status"] == "STOPPED"
    assert killed == [task["id"]]


def test_stopping_a_training_stops_those_that_wait(
    door: TestClient, app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OHIF's button starts one after another, and stops once."""
    begun, stopped = threading.Event(), threading.Event()
    ran = []

    def work(task: dict[str, Any], method: str, *_: Any) -> None:
        ran.append(task["request"]["model"])
        task["status"] = "RUNNING"
        begun.set()
        stopped.wait(30)

    trainer = SimpleNamespace(info=dict, stats=dict, check_labels=lambda datastore: None)
    trainers = {"esp_medsam_ct_organs": trainer, "esp_medsam_spots": trainer}
    monkeypatch.setattr(app, "_trainers", trainers)
    monkeypatch.setattr(utils, "_task_func", work)
    monkeypatch.setattr(utils, "background_tasks", {})
    monkeypatch.setattr(utils, "background_executors", {})
    assert list(door.post("/train/").json()) == list(trainers)
    assert begun.wait(30)
    executor = utils.background_executors["train"]
    assert door.delete("/train/").status_code == 200
    stopped.set()
    executor.shutdown()
    assert ran == ["esp_medsam_ct_organs"]
    assert [task["status"] for task in utils.tasks("train")] == ["RUNNING", "STOPPED"]
    # the next one finds a queue again
    assert door.post(TRAIN, params={"enqueue": True}).status_code == 200
    utils.background_executors["train"].shutdown()
    assert ran == ["esp_medsam_ct_organs"] * 2
