"""One training by two processes, as on two GPUs; here on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monailabel.datastore.local import LocalDatastore
from support.discs import DISC, labelled_discs
from support.two_processes import ObservedTask

from esp_medsam_app.errors import OutOfMemoryError
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import load_bundle, save_bundle
from esp_medsam_app.weights.versions import VersionStore

# an odd number of views, so that one process has to take a view twice
OPTIONS = {
    "max_epochs": 2, "views": 5, "train_batch_size": 1, "tracking": "None", "device": "cpu",
    "multi_gpu": True, "gpus": "0,1", "early_stop_patience": 1,
}  # fmt: skip

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="with GPUs, MONAI Label takes one for each process"
    ),
]


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    backbone = replace(LITE_MEDSAM, input_size=32)
    folder = tmp_path / "bundle"
    network = new_network(backbone, [DISC])
    save_bundle(folder, network, [DISC], name="small", backbone=backbone, training={})
    return VersionStore(tmp_path / "versions", load_bundle(folder))


@pytest.fixture
def datastore(tmp_path: Path) -> LocalDatastore:
    return labelled_discs(tmp_path / "drawn", 4, labelled=4)


@pytest.fixture
def task(store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObservedTask:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names = [model_name("disc")]
    task = ObservedTask(DISC, store, tmp_path / "training", names, device="cpu", tracking=False)
    task.seen = tmp_path
    return task


def test_two_processes_learn_the_same_and_make_one_version(
    task: ObservedTask, store: VersionStore, datastore: LocalDatastore, tmp_path: Path
) -> None:
    stats = task(OPTIONS, datastore)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])
    (version,) = store.versions("disc")[1:]
    assert stats["version"] == version.number == 1
    # the views are shared out: three of five for each
    assert one["steps"] == other["steps"] == 3 * stats["epoch"]
    if stats["epoch"] == 2:
        # the schedule, down from 1e-4, ends with the last step of each
        assert one["rate"] < 2e-5


def test_no_process_waits_for_one_that_failed(
    task: ObservedTask, store: VersionStore, datastore: LocalDatastore
) -> None:
    task.fails = 1
    with pytest.raises(OutOfMemoryError, match="not enough memory"):
        task(OPTIONS, datastore)
    assert store.versions("disc")[1:] == []
