"""Training from submitted labels, on the real backbone with a small input."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from filelock import FileLock
from monailabel.datastore.local import LocalDatastore
from support.discs import DISC, labelled_discs

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError, OutOfMemoryError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.learning.learner import ModalityLearner
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server import train_task, train_tracking
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.train_job import TrainJob
from esp_medsam_app.server.train_task import EspMedSamTrainTask
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import Bundle, load_bundle, save_bundle
from esp_medsam_app.weights.versions import VersionStore

TILE = 64
OTHER = Modality(name="other", title="Other", description="", dimension=2, labels={"thing": 1})
QUICK = {"max_epochs": 2, "views": 8, "train_batch_size": 4, "tracking": "None"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained bundle of two modalities."""
    backbone = replace(LITE_MEDSAM, input_size=TILE)
    folder = tmp_path_factory.mktemp("bundle")
    network = new_network(backbone, [DISC, OTHER])
    save_bundle(folder, network, [DISC, OTHER], name="small", backbone=backbone, training={})
    return load_bundle(folder)


@pytest.fixture
def store(base: Bundle, tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions", base)


@pytest.fixture
def datastore(tmp_path: Path) -> LocalDatastore:
    """Five labelled pictures of a bright disc, and one without a label."""
    return labelled_discs(tmp_path / "drawn", 6, labelled=5)


@pytest.fixture
def task(store: VersionStore, tmp_path: Path) -> EspMedSamTrainTask:
    return EspMedSamTrainTask(
        DISC,
        store,
        tmp_path / "training",
        [model_name("disc"), model_name("other")],
        device="cpu",
        tracking=False,
    )


def weights_of(bundle: Bundle, name: str) -> dict[str, torch.Tensor]:
    network = bundle.load_network([name])
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_training_makes_a_version_and_touches_nothing_else(
    task: EspMedSamTrainTask, store: VersionStore, datastore: LocalDatastore, base: Bundle
) -> None:
    other = weights_of(base, "other")
    assert task.last_start() == 0.0
    start = time.time()
    stats = task(QUICK, datastore)
    # labels that came while it went on are not learned from
    assert task.last_start() == pytest.approx(start, abs=0.25 * (time.time() - start) + 0.1)
    (version,) = store.versions("disc")[1:]
    assert stats["version"] == version.number == 1
    assert len(version.cases.train) + len(version.cases.validation) == 5
    assert len(version.cases.validation) == 1
    assert set(version.dice.after) == set(version.dice.before) == set(version.cases.validation)
    assert stats["promotion"]["after"] == pytest.approx(version.dice.means["after"])
    now = weights_of(store.bundle(), "other")
    assert other.keys() == now.keys()
    assert all(torch.equal(other[key], now[key]) for key in other)
    # what viewers read
    assert stats["total_time"]
    assert 0 <= stats["best_metric"] <= 1
    assert (stats["epoch"], stats["total_epochs"]) == (2, 2)
    assert json.loads(json.dumps(stats)) == task.stats()


def test_a_better_candidate_serves(
    task: EspMedSamTrainTask, store: VersionStore, datastore: LocalDatastore
) -> None:
    stats = task({**QUICK, "max_epochs": 5, "views": 24, "learning_rate": 2e-3}, datastore)
    assert stats["promotion"]["published"]
    assert stats["promotion"]["gain"] > 0.1
    assert store.serving()["disc"] == 1
    # the one without a label
    image = read_image(datastore.get_image_uri("case5"))
    found = Segmenter(store.bundle(), device="cpu").segment(image, "disc")
    assert (found > 0).mean() > 0.02


def test_a_candidate_that_is_no_better_is_kept_back(
    task: EspMedSamTrainTask, store: VersionStore, datastore: LocalDatastore
) -> None:
    stats = task({**QUICK, "margin": 0.99}, datastore)
    assert not stats["promotion"]["published"]
    assert store.serving()["disc"] == 0
    (version,) = store.versions("disc")[1:]
    assert version.state == "kept_back"
    assert "0.99 is asked for" in version.reason


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ((ModalityLearner, "forward"), "Set train_batch_size to 2"),
        ((TrainJob, "prepared"), "set device to cpu"),
        ((train_task, "judge"), "set device to cpu"),
    ],
)
def test_a_failed_training_leaves_what_serves_and_says_what_to_change(
    task: EspMedSamTrainTask,
    store: VersionStore,
    datastore: LocalDatastore,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
    remedy: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(OutOfMemoryError, match=remedy):
        task(QUICK, datastore)
    assert store.versions("disc")[1:] == []


def test_after_a_failed_training_the_next_one_starts(
    task: EspMedSamTrainTask, datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(train_task, "judge", fail)
        with pytest.raises(ValueError, match="a defect"):
            task(QUICK, datastore)
    assert task(QUICK, datastore)["version"] == 1


@pytest.mark.parametrize("lost", [False, True])
def test_mlflow_draws_curves_and_no_training_is_lost_by_it(
    task: EspMedSamTrainTask,
    datastore: LocalDatastore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lost: bool,
) -> None:
    client = MagicMock()
    if lost:
        client.create_run.side_effect = ConnectionError("no such server")
    monkeypatch.setattr(train_tracking, "_client", lambda uri: client)
    stats = task({**QUICK, "tracking": "mlflow", "tracking_uri": "http://mlflow"}, datastore)
    assert stats["version"] == 1
    assert ("http://mlflow" in caplog.text) == lost
    drawn = [call.kwargs["metrics"] for call in client.log_batch.call_args_list]
    if lost:
        assert drawn == []
        return
    curves = [{metric.key for metric in point} for point in drawn]
    assert curves[:2] == [{"loss", "train_mean_dice", "val_mean_dice"}] * 2
    assert [point[0].step for point in drawn[:2]] == [1, 2]
    assert curves[2:] == [{"dice_before", "dice_after"}]
    client.set_terminated.assert_called_once_with(client.create_run().info.run_id, "FINISHED")


def test_held_out_cases_stay_held_out(
    task: EspMedSamTrainTask, store: VersionStore, datastore: LocalDatastore
) -> None:
    held_out = set()
    for share in (0.2, 0.5, 0.2):
        task({**QUICK, "max_epochs": 1, "val_split": share}, datastore)
        version = store.versions("disc")[-1]
        assert not held_out & set(version.cases.train)
        held_out |= set(version.cases.validation)


def test_a_patient_in_the_file_names_stands_on_one_side(
    task: EspMedSamTrainTask, datastore: LocalDatastore
) -> None:
    task.pattern = re.compile(r"^(cas)")
    # all are of one patient: there is nobody to judge by
    stats = task(QUICK, datastore)
    assert stats["promotion"]["cases"] == 0
    assert "no held-out case" in stats["promotion"]["reason"]
    assert not stats["promotion"]["published"]


def test_options_that_clients_leave_out_or_send_as_lists(task: EspMedSamTrainTask) -> None:
    for value in task.config().values():
        assert isinstance(value, str | bool | int | float) or all(
            isinstance(entry, str) for entry in value
        )
    with pytest.raises(InputError, match="max_epochs"):
        task({"max_epochs": "many"}, None)  # type: ignore[arg-type]


def test_labels_of_other_models_are_not_learned_from(
    task: EspMedSamTrainTask, datastore: LocalDatastore
) -> None:
    for number in range(5):
        datastore.update_label_info(f"case{number}", "final", {"model": model_name("other")})
    with pytest.raises(InputError, match="no submitted label of disc"):
        task(QUICK, datastore)


def test_two_trainings_at_once_are_refused(
    task: EspMedSamTrainTask, datastore: LocalDatastore
) -> None:
    task.folder.mkdir(parents=True)
    with FileLock(task.folder / ".lock"), pytest.raises(InputError, match="being trained already"):
        task(QUICK, datastore)
