"""Curves in MLflow, which no training depends on."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from monai.utils import path_to_sqlite_uri
from monailabel.config import settings

from esp_medsam_app.server import train_tracking
from esp_medsam_app.server.train_options import TrainOptions
from esp_medsam_app.server.train_tracking import Tracking

NOBODY = "http://127.0.0.1:9"


class Recorder:
    """Stands for MLflow's client."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            if self.error is not None:
                raise self.error

        return call


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def wanted(folder: Path, **options: Any) -> Tracking | None:
    return Tracking.wanted(TrainOptions.parse(options), "esp_medsam_disc", "run_1", folder)


def test_a_run_in_the_apps_own_database(tmp_path: Path) -> None:
    tracking = wanted(tmp_path)
    assert tracking is not None
    tracking.begin({"max_epochs": 2, "views": 8})()
    # it travels to the process that trains
    for sent in (copy.deepcopy(tracking), pickle.loads(pickle.dumps(tracking))):
        sent.epoch(1, {"loss": 0.5, "val_mean_dice": 0.25, "broken": float("nan")})
    tracking.end("FINISHED", {"dice_after": 0.75}, {"version": 3, "reason": "better"})
    client = MlflowClient(path_to_sqlite_uri(tmp_path / "mlflow.db"))
    experiment = client.get_experiment_by_name("esp_medsam_disc")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run_1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"max_epochs": "2", "views": "8"}
    assert run.data.metrics == {"loss": 0.5, "val_mean_dice": 0.25, "dice_after": 0.75}
    assert run.data.tags.items() >= {"version": "3", "reason": "better"}.items()
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 1]


def test_a_server_that_is_not_there_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = wanted(tmp_path, tracking_uri=NOBODY)
    assert tracking is not None
    tracking.begin({})()
    tracking.epoch(1, {"loss": 0.5})
    tracking.end("FINISHED", {}, {})
    (record,) = [r for r in caplog.records if r.name == train_tracking.__name__]
    assert NOBODY in record.getMessage()
    assert "The training goes on without" in record.getMessage()


def test_a_server_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    answer = threading.Event()
    monkeypatch.setattr(train_tracking, "_client", lambda uri: answer.wait(20))
    monkeypatch.setattr(train_tracking, "_START_SECONDS", 0.05)
    tracking = wanted(tmp_path)
    assert tracking is not None
    tracking.begin({})()
    assert "no answer" in caplog.text
    tracking.epoch(1, {"loss": 0.5})  # does not even try
    answer.set()


def test_it_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Recorder(ConnectionError("reset"))
    monkeypatch.setattr(train_tracking, "_client", lambda uri: client)
    tracking = wanted(tmp_path)
    assert tracking is not None
    for number in (1, 2, 3):
        tracking.epoch(number, {"loss": 0.5})
    assert client.calls == ["log_batch"]


def test_where_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uri(**options: Any) -> str:
        tracking = wanted(tmp_path, **options)
        assert tracking is not None
        return tracking.uri

    assert wanted(tmp_path, tracking="None") is None
    assert uri() == path_to_sqlite_uri(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://third")
    assert uri() == "http://third"
    monkeypatch.setattr(settings, "MONAI_LABEL_TRACKING_URI", "http://second")
    assert uri() == "http://second"
    assert uri(tracking_uri="http://first") == "http://first"
