"""Scores of the labels in the datastore."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monailabel.tasks.scoring.dice import Dice
from support.fake_server import AFFINE

from esp_medsam_app.evaluation.metrics import score_labels
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.server.scoring import (
    BackgroundScoring,
    DiceScore,
    LabelScoring,
    VoxelSum,
    dice_of_labels,
)

SHAPE = (4, 3, 5)
INFO = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}


@pytest.fixture
def store(tmp_path: Path) -> SafeDatastore:
    """Volumes `a`, `b` and `c`."""
    for name in "abc":
        volume(tmp_path / "studies" / f"{name}.nii.gz", np.zeros(SHAPE, np.uint8))
    return SafeDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz"])


def volume(path: Path, voxels: np.ndarray) -> str:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return str(path)


@pytest.fixture
def save(store: SafeDatastore, tmp_path: Path) -> Callable[..., None]:
    def save(image: str, tag: str, voxels: np.ndarray, info: dict[str, Any] = INFO) -> None:
        store.save_label(image, volume(tmp_path / "label.nii.gz", voxels), tag, info)

    return save


def organs() -> np.ndarray:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[0, :2, :2], voxels[2, :2, :2] = 1, 2
    return voxels


@pytest.mark.parametrize("method", [DiceScore, pytest.param(
    Dice, marks=pytest.mark.xfail(strict=True, reason="MONAI Label 0.8.5 gives 1.67"))
])  # fmt: skip
def test_identical_label_maps_have_a_dice_of_1(
    store: SafeDatastore, save: Any, method: Callable[[], Any]
) -> None:
    for tag in ("final", "original"):
        save("a", tag, organs())
    assert method()({}, store) == {"a": 1.0}
    assert store.get_image_info("a")["dice"] == 1.0


def test_dice_is_a_mean_over_labels(store: SafeDatastore, save: Any) -> None:
    guess = organs()
    guess[2] = 0  # no spleen
    guess[0, 1] = 0  # half a liver
    save("a", "final", organs())
    save("a", "original", guess)
    save("b", "final", organs())  # nothing to compare it with
    save("c", "final", np.zeros(SHAPE, np.uint8))
    save("c", "original", np.zeros(SHAPE, np.uint8))
    assert DiceScore()({}, store) == {"a": pytest.approx((2 / 3 + 0) / 2), "c": 1.0}
    info = store.get_image_info("a")
    assert info["dice_labels"] == {"liver": pytest.approx(2 / 3), "spleen": 0.0}
    assert "dice" not in store.get_image_info("b")


def test_labels_are_compared_by_name(store: SafeDatastore, save: Any) -> None:
    save("a", "final", organs())
    other = {"params": {"label_names": {"Spleen": 1, "Liver": 2}}}
    save("a", "mine", np.array([0, 2, 1], np.uint8)[organs()], other)
    assert DiceScore()({"y": "final", "y_pred": "mine"}, store) == {"a": 1.0}
    assert DiceScore()({"y": "mine"}, store) == {}


@given(*[arrays(np.uint8, (3, 4), elements=st.integers(0, 3)) for _ in range(2)])
def test_dice_is_that_of_the_evaluation(truth: np.ndarray, guess: np.ndarray) -> None:
    def masks(voxels: np.ndarray) -> dict[str, np.ndarray]:
        return {str(v): voxels == v for v in (1, 2, 3) if (voxels == v).any()}

    expected = score_labels(truth, guess, {str(v): v for v in (1, 2, 3)}, [1.0, 1.0])
    result = dice_of_labels(masks(truth), masks(guess))
    assert result == {name: s.dice for name, s in expected.items() if not s.absent}


def test_sum(store: SafeDatastore, save: Any) -> None:
    save("a", "final", organs())
    save("a", "original", np.zeros(SHAPE, np.uint8))
    counted = {"sum": 8, "slices": 2, "voxels": {"liver": 4, "spleen": 4}}
    nothing = {"sum": 0, "slices": 0, "voxels": {}}
    assert VoxelSum()({}, store) == {"a": {"final": counted, "original": nothing}}
    info = store.get_label_info("a", "final")
    assert {name: info[name] for name in counted} == counted
    assert info["label_info"] == INFO["label_info"]


def test_a_bad_label_does_not_stop_the_others(
    store: SafeDatastore, save: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for image in "abc":
        for tag in ("final", "original"):
            save(image, tag, organs())
    Path(store.get_label_uri("a", "final")).write_bytes(b"damaged")
    nib.save(
        nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), AFFINE), store.get_label_uri("b", "final")
    )
    result = DiceScore()({}, store)
    assert "a.nii.gz" in result["a"]["error"]
    assert "(2, 2, 2) and (4, 3, 5) voxels" in result["b"]["error"]
    assert result["c"] == 1.0
    assert "Image 'a' cannot be scored" in caplog.text
    assert "error" in VoxelSum()({}, store)["a"]
    assert "tag" in DiceScore()({"y": 3}, store)["c"]["error"]


@pytest.mark.parametrize("method", [DiceScore(), VoxelSum()])
def test_what_was_scored_is_not_scored_again(
    store: SafeDatastore, save: Any, monkeypatch: pytest.MonkeyPatch, method: LabelScoring
) -> None:
    for tag in ("final", "original"):
        save("a", tag, organs())
    first = method({}, store)
    written = store._file.path.stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr("esp_medsam_app.server.scoring.read_label_map", None)
        assert method({}, store) == first
    assert store._file.path.stat().st_mtime_ns == written
    save("a", "final", np.zeros(SHAPE, np.uint8))
    assert method({}, store) != first


# --- when it happens -----------------------------------------------------------------------------


class Slow(LabelScoring):
    def __init__(self) -> None:
        super().__init__("")
        self.started, self.may_end = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, request: Any, datastore: Any) -> dict[str, Any]:
        self.calls += 1
        self.started.set()
        assert self.may_end.wait(30)
        raise ZeroDivisionError  # no defect ends the thread

    def score(self, image_id: str, request: Any, datastore: Any) -> None: ...


def test_many_wakings_are_one_more_round(
    store: SafeDatastore, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Slow()
    scoring = BackgroundScoring({"slow": slow}, lambda: store)
    scoring.wake()
    assert slow.started.wait(30)
    for _ in range(5):
        scoring.wake()
    slow.may_end.set()
    scoring.wait()
    assert slow.calls == 2
    assert "'slow' failed" in caplog.text
    scoring.wake()
    scoring.wait()
    assert slow.calls == 3


def test_the_server_scores_beside_its_work(
    app: EspMedSamApp, organs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(
        "monailabel.interfaces.app.AsyncTask.run",
        lambda kind, request, **_: (started.append(request["method"]), None),
    )
    label = volume(tmp_path / "l.nii.gz", (organs == 100).astype(np.uint8))
    for tag in ("final", "original"):
        app.datastore().save_label("case", label, tag, {"model": "esp_medsam_ct_organs"})
    assert app.async_scoring(None) == {}  # a process of its own, as for training: not there
    assert "dice" not in app.datastore().get_image_info("case")
    app.server_mode(True)
    app.next_sample({"strategy": "random"})
    assert app._label_scoring is not None
    app._label_scoring.wait()
    assert app.datastore().get_image_info("case")["dice"] == 1.0
    assert app.datastore().get_label_info("case", "final")["voxels"] == {"liver": 12}
    assert started == []
    app.async_scoring("dice")
    assert started == ["dice"]


def test_scoring_by_request(client: TestClient) -> None:
    response = client.post("/scoring/dice", params={"run_sync": True})
    assert (response.status_code, response.json()) == (200, {})
    assert {"dice", "sum"} <= set(client.get("/info/").json()["scoring"])
