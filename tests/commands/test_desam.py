"""DeSAM on the command line: train, segment and compare it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esp_medsam_app import cli
from esp_medsam_app.weights import desam_bundle, desam_encoders
from esp_medsam_app.weights.desam_bundle import load_desam

TINY = ("--set", "views=2", "--set", "epochs=1", "--set", "batch=1", "--device", "cpu")


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str) -> desam_encoders.EncoderFacts:
        return facts(name)._replace(tile=64)

    facts = desam_encoders.encoder_facts
    monkeypatch.setattr(desam_bundle, "encoder_facts", small)
    monkeypatch.setattr(desam_encoders, "encoder_facts", small)
    monkeypatch.setenv("COLUMNS", "80")


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def test_a_bundle_comes_out_segments_and_is_compared(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", ("--data", f"dermoscopy={cases}")
    train = ("train", "--model", "desam", *data, *TINY)
    assert run(*train, "-o", out, "--work", tmp_path / "w", "--seed", "4") == 0
    # once more: all is done already
    assert run(*train, "-o", out, "--work", tmp_path / "w", "--seed", "4") == 0
    bundle = load_desam(out)
    bundle.verify()
    (told,) = bundle.description.training["runs"]
    assert told["recipe"]["seed"] == 4
    assert told["recipe"]["iou_weight"] == 10
    assert list(bundle.modalities) == ["dermoscopy"]
    assert bundle.description.smallest_regions == {}
    capsys.readouterr()

    picture = cases / "images" / "a.png"
    for prompt in ("whole_box", "grid_points"):
        written = tmp_path / prompt
        assert run("segment", picture, "-m", "dermoscopy", "-o", written, "--bundle", out,
                   "--prompt", prompt, "--device", "cpu") == 0  # fmt: skip
        assert np.asarray(Image.open(written / "a_seg.png")).shape == (48, 64)

    report = tmp_path / "report.json"
    assert run("evaluate", "--data", cases, "-m", "dermoscopy", "--desam", out,
               "--json", report, "--device", "cpu", "--limit", "1") == 0  # fmt: skip
    told = json.loads(report.read_text())["comparison"]["models"]
    assert [(model["model"], model["prompt"]) for model in told] == [
        ("ESP-MedSAM", "none"),
        ("DeSAM", "whole image"),
        ("DeSAM", "grid of points"),
    ]
    assert "grid of points" in capsys.readouterr().out

    # it goes on with another modality, of many small structures; the first stays as it is
    more, dotted = tmp_path / "more", tmp_path / "dotted"
    for folder, shift in (("images", 80), ("labels", 0)):
        (dotted / folder).mkdir(parents=True)
        dots = np.zeros((64, 64), np.uint8)
        dots[4::16, 4::16] = dots[4::16, 5::16] = 1
        Image.fromarray(dots + shift).save(dotted / folder / "a.png")
    assert run("train", "--model", "desam", "--data", f"colonoscopy={dotted}", "-o", more,
               "--work", tmp_path / "w2", "--start", out, *TINY) == 0  # fmt: skip
    second = load_desam(more)
    assert set(second.modalities) == {"dermoscopy", "colonoscopy"}
    kept = bundle.modality_file("dermoscopy")
    assert second.rules("colonoscopy").smallest_region < second.rules("dermoscopy").smallest_region
    assert second.description.files[kept] == bundle.description.files[kept]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "desam", "--without", "controllers"), "--without"),
        (("--model", "desam", "--own-only"), "--shared"),
        (("--encoder", "sam_vit_b"), "--encoder"),
        (("--model", "desam", "--encoder", "sam_vit_x"), "sam_vit_x"),
        (("--model", "desam", "--recipe", "two_cores"), "paper"),
    ],
)
def test_options_of_the_other_family_are_told(
    cases: Path, tmp_path: Path, options: tuple[str, ...],
    said: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = ("--data", f"dermoscopy={cases}", "-o", tmp_path / "o", "--work", tmp_path / "w")
    assert run("train", *data, *options) != 0
    assert said in capsys.readouterr().err
