"""`segment --modality auto` and `classifier`, around a backbone of a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.bundles import bundle_of

from esp_medsam_app import cli
from esp_medsam_app.commands import classifier, runtime
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.inference.modality_reader import ModalityReading
from esp_medsam_app.modalities import Modality
from esp_medsam_app.weights import Bundle, load_bundle
from esp_medsam_app.weights.bundle import save_description

DARK, BRIGHT = (
    Modality(name=name, title="", description="", dimension=2, labels={name: 1})
    for name in ("dark", "bright")
)


class Encoder(torch.nn.Module):
    """Stands for the backbone: a random convolution, in no time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = torch.nn.Conv2d(3, 12, 7, stride=2)

    def encode_until(self, tiles: torch.Tensor, stage: int) -> torch.Tensor:
        return self.filters(tiles).relu()

    def encode_from(self, features: torch.Tensor, stage: int) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(features, 4)


class Reader:
    """Bright pictures are `bright`; of a value in between nothing can be told."""

    bundle = bundle_of(DARK, BRIGHT)
    device = torch.device("cpu")

    def read_modality(self, image: MedicalImage) -> ModalityReading:
        shares = {"bright": 0.6, "dark": 0.4}
        if image.voxels.max() < 150:
            return ModalityReading(None, 0.6, shares, "classifier", "it cannot be told")
        return ModalityReading("bright", 0.94, shares, "classifier")

    def segment(self, image: MedicalImage, modality: str, on_slice: object) -> NDArray[np.uint8]:
        assert modality == "bright"
        return (image.voxels > 100).astype(np.uint8)


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def picture(path: Path, value: int, pattern: int = 1, seed: int = 0) -> Path:
    """Stripes of a width, with noise."""
    columns = np.arange(64) // pattern % 2
    noise = np.random.default_rng(seed).normal(0, 6, (64, 64))
    grey = (value * columns[None, :] + noise).clip(0, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey.astype(np.uint8)).save(path)
    return path


def test_segment_reads_the_modality_of_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "make_segmenter", lambda *_, **__: Reader())
    clear, unclear = picture(tmp_path / "a.png", 200), picture(tmp_path / "b.png", 120)
    assert run("segment", clear, unclear, "-m", "auto", "-o", tmp_path / "out", "--overlay") == 2
    shown = capsys.readouterr()
    assert "a_seg.png: bright (94% by classifier): bright " in shown.out
    expected = f"{unclear}: it cannot be told; likeliest: bright (60%), dark (40%). Give --modality"
    assert expected in shown.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_overlay.png",
        "a_seg.png",
    ]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of two modalities and no weights; the backbone is random."""
    encoder = Encoder()
    monkeypatch.setattr(classifier, "_encoder", lambda *options: encoder)
    made = Bundle(tmp_path / "bundle", bundle_of(DARK, BRIGHT).description)
    save_description(made)
    for start, (split, count) in enumerate((("train", 5), ("val", 3), ("test", 3))):
        for index in range(count):
            seed = 10 * start + index
            picture(tmp_path / split / "dark" / f"{index}.png", 200, 2, seed)
            picture(tmp_path / split / "bright" / f"{index}.png", 200, 16, seed)
    return made


def data(option: str, folder: Path, *names: str) -> list[str]:
    return [text for name in names for text in (option, f"{name}={folder / name}")]


def test_a_classifier_is_trained_written_and_judged(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("dark", "bright")
    arguments = [
        "classifier", "train", "--bundle", bundle.path, "--work", tmp_path / "work",
        "--images", "4", "--views", "6", *data("--data", tmp_path / "train", *both),
        *data("--val", tmp_path / "val", *both),
    ]  # fmt: skip
    assert run(*arguments) == 0
    assert "wrote the classifier of 2 modalities" in capsys.readouterr().out
    described = load_bundle(bundle.path).description.modality_classifier
    assert described is not None
    assert described.training["images"] == {"dark": 4, "bright": 4}
    assert described.training["folders"]["dark"] == ["train/dark"]
    report = tmp_path / "report.json"
    strange = tmp_path / "none"
    rng = np.random.default_rng(3)
    for index in range(2):
        strange.mkdir(exist_ok=True)
        noise = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(strange / f"{index}.png")
    arguments = [
        "classifier", "evaluate", "--bundle", bundle.path, "--json", report, "--keep", "test",
        *data("--data", tmp_path / "test", *both), "--data", f"none={strange}",
    ]  # fmt: skip
    assert run(*arguments) == 0
    figures = json.loads(report.read_text())
    assert figures["images"] == 6
    assert figures["modalities"]["dark"]["likeliest_right"] == 3
    assert figures["modalities"]["none"]["images"] == 2
    assert "6 images of known modalities" in capsys.readouterr().out
    assert figures["others"] == 2
    kept = load_bundle(bundle.path).description.modality_classifier
    assert kept is not None
    assert kept.scores == {"test": figures}


@pytest.mark.parametrize(
    ("training", "validation", "told"),
    [
        (["dark=train/dark"], ["dark=val/dark"], "nothing to tell apart"),
        (["dark=train/dark", "bright=train/bright"], ["dark=val/dark"], "bright: only one of"),
        (["dark=train/dark", "bright=train/bright"], ["val/dark"], "--val val/dark: not of"),
        (["dark=train/dark", "B b=train/bright"], ["dark=val/dark"], "made of a-z"),
        (
            ["dark=train/dark", "bright=train/bright"],
            ["dark=train/dark", "bright=val/bright"],
            "to train on and to validate with",
        ),
    ],
)
def test_mistakes_are_told_before_the_work(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, training: list[str], validation: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = [text for option in training for text in ("--data", option)]
    options += [text for option in validation for text in ("--val", option)]
    assert run("classifier", "train", "--bundle", bundle.path, *options) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
