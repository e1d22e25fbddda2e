"""`evaluate --baselines` around models whose answers are known, and a U-Net of a few views."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.bundles import bundle_of

from esp_medsam_app import cli
from esp_medsam_app.baselines import box_prompt, unet
from esp_medsam_app.commands import runtime
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import OutOfMemoryError
from esp_medsam_app.modalities import Modality

BLOB = Modality(name="blob", title="", description="", dimension=2, labels={"blob": 1})
SIDES = Modality(
    name="sides", title="", description="", dimension=2, labels={"left": 1, "right": 2}
)
SIZE = 64


class Reader:
    """ESP-MedSAM's place: bright is label 1."""

    device = torch.device("cpu")

    def __init__(self, runs: list[dict[str, Any]] | None = None) -> None:
        bundle = bundle_of(BLOB, SIDES)
        changes = {"input_size": SIZE, "training": {"runs": runs or []}}
        self.bundle = replace(bundle, description=bundle.description.model_copy(update=changes))

    def segment(self, image: MedicalImage, modality: str, on_slice: Any) -> NDArray[np.uint8]:
        on_slice(1, 1)
        return (image.voxels > 150).astype(np.uint8)

    def input_size(self, modality: str) -> int:
        return SIZE

    def parameters(self, modality: str) -> int:
        return 13_000_000


class Boxed:
    """LiteMedSAM's place: with the box all is right, without it nothing is found."""

    parameters = 9_800_000

    def __init__(self, modality: Modality, device: str, batch_size: int | None) -> None:
        assert device == "cpu"

    def segment_boxed(self, image: MedicalImage, reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return reference

    def segment_whole(self, image: MedicalImage) -> NDArray[np.uint8]:
        if image.voxels.max() == 201:
            raise OutOfMemoryError("too little memory")
        return np.zeros_like(image.voxels)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "make_segmenter", lambda *_, **__: Reader())
    monkeypatch.setattr(box_prompt, "BoxPromptedSegmenter", Boxed)
    monkeypatch.setattr(unet, "FILTERS", (8, 16, 16))
    monkeypatch.setenv("COLUMNS", "80")


def case(folder: Path, stem: str, seen: int, bright: int = 200) -> None:
    """A square of 20 x 20, of which `seen` rows are bright."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[10:30, 30:50] = 1
    grey = np.full((SIZE, SIZE), 20, np.uint8)
    grey[10 : 10 + seen, 30:50] = bright
    for part, array in (("images", grey), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / part / f"{stem}.png")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Evaluation cases, ESP-MedSAM's Dice on them 1, 2/3 and 2/3, and training cases."""
    for stem, seen in (("a", 20), ("b", 10), ("c", 10)):
        case(tmp_path / "test", stem, seen)
    for stem in "xy":
        case(tmp_path / "train", stem, 20)
    return tmp_path / "test", tmp_path / "train"


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "--modality", "blob", *map(str, arguments)])
    return int(caught.value.code or 0)


def row(printed: str, model: str, prompt: str) -> str:
    """The two lines of a model in the table."""
    lines = printed.splitlines()
    found = [
        first + second
        for first, second in itertools.pairwise(lines)
        if first.startswith(f"│ {model} ") and second.startswith(f"│ {prompt} ")
    ]
    assert len(found) == 1
    return found[0]


def test_one_table_and_one_report(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, train = folders
    report = tmp_path / "report.json"
    options = ["--train-data", train, "--work", tmp_path / "work", "--unet-views", "8"]
    assert run("--data", test, "--baselines", *options, "--json", report) == 0
    content = json.loads(report.read_text())
    # what `evaluate` says without --baselines stays
    assert content["dice"]["mean"] == pytest.approx(7 / 9)
    assert (content["modality"], content["cases"], content["failed"]) == ("blob", 3, [])
    models = content["comparison"]["models"]
    assert [(m["model"], m["prompt"]) for m in models] == [
        ("ESP-MedSAM", "none"),
        ("LiteMedSAM", "reference's box"),
        ("LiteMedSAM", "whole image"),
        ("U-Net", "none"),
    ]
    ours, boxed, whole, learned = models
    assert ours["parameters"] == 13_000_000
    assert boxed["dice"]["mean"] == 1
    assert boxed["difference"]["mean"] == pytest.approx(2 / 9)
    assert boxed["difference"]["ci95"] == pytest.approx([0, 1 / 3])
    assert whole["difference"]["mean"] == pytest.approx(-7 / 9)
    assert learned["training"]["views"] == 8
    assert learned["training"]["cases"] == 2
    assert learned["training"]["seconds"] > 0
    assert [entry["name"] for entry in learned["report"]["per_case"]] == ["a", "b", "c"]
    assert all(model["slices_per_second"] > 0 for model in models)
    printed = capsys.readouterr().out
    for word in ("0.778 ± 0.192", "13.00 M"):
        assert word in row(printed, "ESP-MedSAM", "no prompt")
    for word in ("1.000 ± 0.000", "+0.222", "+0.000 to +0.333", "9.80 M"):
        assert word in row(printed, "LiteMedSAM", "reference's box")
    assert "-0.778" in row(printed, "LiteMedSAM", "whole image")
    assert row(printed, "U-Net", "no prompt")
    assert "trained from nothing on 2 cases, 8 views" in printed


def test_the_u_net_is_trained_once(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, train = folders
    options = ["--baselines", "--train-data", train, "--work", tmp_path / "work"]
    assert run("--data", test, *options, "--unet-views", "4") == 0
    other = tmp_path / "other"
    case(other, "d", 20)
    monkeypatch.setattr(unet, "optimise", lambda *_: pytest.fail("trains again"))
    report = tmp_path / "report.json"
    assert run("--data", other, *options, "--unet-views", "4", "--json", report) == 0
    assert json.loads(report.read_text())["comparison"]["models"][3]["training"]["views"] == 4


def test_as_many_views_as_the_bundle_by_default(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test, train = folders
    options = ["--data", test, "--baselines", "--train-data", train, "--work", tmp_path / "work"]
    assert run(*options) == 2
    assert "does not say how many views of 'blob'" in capsys.readouterr().err
    runs = [{"data": {"blob": {}}, "recipe": {"joint_steps": 3, "joint_batch": 4}}]
    monkeypatch.setattr(runtime, "make_segmenter", lambda *_, **__: Reader(runs))
    assert run(*options, "--json", tmp_path / "report.json") == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["comparison"]["models"][3]["training"]["views"] == 12


def test_without_training_cases_there_is_no_u_net(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data", folders[0], "--baselines", "--work", tmp_path / "work") == 0
    printed = capsys.readouterr().out
    assert row(printed, "LiteMedSAM", "whole image")
    assert "U-Net" not in printed
    assert not (tmp_path / "work").exists()


def test_nothing_is_learned_from_what_is_evaluated(
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test, train = folders
    monkeypatch.setattr(Reader, "segment", lambda *_, **__: pytest.fail("inference"))
    options = ["--train-data", train, "--train-data", test / ".." / "test", "--unet-views", "4"]
    assert run("--data", test, "--baselines", *options, "--work", tmp_path / "work") == 2
    error = capsys.readouterr().err
    assert "a.png: this case is both learned from and evaluated" in error


@pytest.mark.parametrize("option", [("--train-data", "train"), ("--unet-views", "4")])
def test_options_of_baselines_alone(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert run("--data", folders[0], *option) == 2
    assert f"{option[0]} is an option of --baselines" in capsys.readouterr().err


def test_a_case_that_one_model_fails_on(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, _ = folders
    case(test, "d", 20, bright=201)
    report = tmp_path / "report.json"
    assert run("--data", test, "--baselines", "--json", report) == 2
    shown = capsys.readouterr()
    assert "LiteMedSAM (whole image): " in shown.err
    assert "d.png: too little memory" in shown.err
    assert "LiteMedSAM (whole image): 1 of the cases failed" in shown.out
    content = json.loads(report.read_text())
    assert (content["cases"], content["failed"]) == (4, [])
    assert content["comparison"]["models"][2]["difference"]["cases"] == 3


def test_what_a_box_around_all_counts_as(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--modality", "sides", "--baselines"]
    assert run("--data", folders[0], *options) == 0
    assert "what is found counts as left" in capsys.readouterr().out
