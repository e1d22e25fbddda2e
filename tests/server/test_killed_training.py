"""kill -9 at each step that a training does to the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monailabel.tasks.train.basic_train import BasicTrainTask
from support.discs import DISC, labelled_discs
from support.killed import killed_at_each_step

from esp_medsam_app.learning.learner import ModalityLearner
from esp_medsam_app.learning.promotion import Decision
from esp_medsam_app.server import train_task
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.train_job import TrainJob
from esp_medsam_app.server.train_progress import write_stats
from esp_medsam_app.server.train_task import BEST, EspMedSamTrainTask
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import Bundle, load_bundle, save_bundle
from esp_medsam_app.weights.versions import VersionStore

# a network is read for each of some fifty kills
pytestmark = pytest.mark.e2e

OPTIONS = {"max_epochs": 1, "tracking": "None"}


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    """An untrained bundle of one modality."""
    backbone = replace(LITE_MEDSAM, input_size=64)
    network = new_network(backbone, [DISC])
    save_bundle(tmp_path / "bundle", network, [DISC], name="small", backbone=backbone, training={})
    return load_bundle(tmp_path / "bundle")


@pytest.fixture
def no_learning(base: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that take no time, and whose result always serves."""
    learner = ModalityLearner(base.load_network(["disc"]), "disc", 1, torch.device("cpu"))
    state = learner.state_dict()

    def learned_at_once(task: BasicTrainTask, request: dict[str, Any], datastore: Any) -> None:
        """What MONAI's loop leaves: the best epoch, and statistics."""
        torch.save(state, request["job"].work / BEST)
        write_stats(Path(task._stats_path), {"epoch": 1, "start_ts": 1})

    def judged(network: Any, modality: Any, cases: Any, **_: Any) -> dict[str, float]:
        return {case.name: 0.5 for case in cases}

    better = Decision(True, "better", 0.1)
    monkeypatch.setattr(TrainJob, "prepared", lambda self: self)
    monkeypatch.setattr(BasicTrainTask, "__call__", learned_at_once)
    monkeypatch.setattr(train_task, "judge", judged)
    monkeypatch.setattr(train_task, "decide_promotion", lambda *_: better)


def test_training(base: Bundle, no_learning: None, tmp_path: Path) -> None:
    """What serves goes on, no label is lost, nobody changes sides, and the next one trains."""
    datastore = labelled_discs(tmp_path / "drawn", 5, labelled=5)

    def store() -> VersionStore:
        return VersionStore(tmp_path / "versions", base)

    def train() -> dict[str, Any]:
        torch.set_num_threads(1)  # threads do not outlive a fork
        task = EspMedSamTrainTask(
            DISC, store(), tmp_path / "training", [model_name("disc")], device="cpu",
            tracking=False,
        )  # fmt: skip
        return task(OPTIONS, datastore)

    train()
    first = store().versions("disc")[-1]
    served = [1]
    for step in killed_at_each_step(lambda: train() and None):
        again = store()
        served.append(again.serving()["disc"])
        for version in again.versions("disc")[1:]:
            assert set(version.cases.validation) == set(first.cases.validation)
        assert datastore.get_labeled_images() == [f"case{number}" for number in range(5)]
        if step % 10 == 0:
            again.bundle().load_network(["disc"])
            assert train()["version"] == store().serving()["disc"]
    # what served went on, until something newer took its place
    assert served == sorted(served)
    assert served[-1] == store().versions("disc")[-1].number
