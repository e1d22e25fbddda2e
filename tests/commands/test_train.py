"""`esp-medsam train`: from folders to a bundle; what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esp_medsam_app.cli import main
from esp_medsam_app.server.launch import app_folder
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import save_description, starter_bundle_path

TINY = ("--set", "views=2", "--set", "decoder_steps=2", "--set", "decoder_batch=1",
        "--set", "joint_steps=2", "--set", "joint_batch=1", "--device", "cpu")  # fmt: skip


def train(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_a_bundle_comes_out_and_goes_on(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    data = ("--data", f"dermoscopy={cases}", "--data", f"colonoscopy={cases}")
    assert train(*data, "-o", out, "--work", tmp_path / "w", *TINY, "--seed", "4") == 0
    assert "joint: 2 of 2  loss" in capsys.readouterr().out
    assert list((tmp_path / "w" / "curves").glob("events*"))
    bundle = load_bundle(out)
    bundle.verify()
    (run,) = bundle.description.training["runs"]
    assert run["recipe"]["seed"] == 4
    assert run["data"]["dermoscopy"]["cases"] == 2
    # fitted on the weights that they are of
    bundle.description.presence = {"dermoscopy": 0.5, "colonoscopy": 0.25}
    save_description(bundle)
    work = tmp_path / "w2"
    assert train("--data", f"dermoscopy={cases}", "-o", more, "--work", work,
                 "--start", out, *TINY) == 0  # fmt: skip
    first, second = bundle.load_network(), load_bundle(more).load_network()
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(first(image, "colonoscopy").mask_logits,
                       second(image, "colonoscopy").mask_logits)  # fmt: skip
    assert not torch.equal(first(image, "dermoscopy").mask_logits,
                           second(image, "dermoscopy").mask_logits)  # fmt: skip
    assert len(load_bundle(more).description.training["runs"]) == 2
    assert load_bundle(more).description.presence == {"colonoscopy": 0.25}


def test_a_modality_of_ones_own(cases: Path, tmp_path: Path) -> None:
    own = app_folder() / "examples" / "mr_prostate.yaml"
    assert train("--data", f"{own}={cases}", "-o", tmp_path / "out", "--work", tmp_path / "w",
                 *TINY) == 0  # fmt: skip
    bundle = load_bundle(tmp_path / "out")
    assert list(bundle.modality("mr_prostate").labels) == ["prostate"]
    assert bundle.description.training["runs"][0]["data"]["mr_prostate"]["cases"] == 2


def test_parts_can_be_left_out(cases: Path, tmp_path: Path) -> None:
    data = ("--data", f"dermoscopy={cases}")
    assert train(*data, "-o", tmp_path / "out", "--work", tmp_path / "w", *TINY,
                 "--without", "controllers", "--without", "own_queries") == 0  # fmt: skip
    bundle = load_bundle(tmp_path / "out")
    assert not bundle.description.design.controllers
    assert bundle.load_network()(torch.rand(1, 3, 64, 64), "dermoscopy").mask_logits.shape[1] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "dermoscopy"), "MODALITY=DIR"),
        (("--data", "moon=CASES"), "moon"),
        (("--data", "moon.yaml=CASES"), "cannot be read"),
        (("--data", "dermoscopy=CASES", "--data", "OWN=CASES"), "one name"),
        (("--data", "dermoscopy=CASES", "--set", "views"), "KEY=VALUE"),
        (("--data", "dermoscopy=CASES", "--set", "views=0"), "views"),
        (("--data", "dermoscopy=CASES", "--recipe", "best"), "two_cores"),
        (("--data", "dermoscopy=CASES", "--leave-out", "a"), "MODALITY=NAME"),
        (("--data", "dermoscopy=CASES", "--leave-out", "dermoscopy=z"), "'z'"),
        (("--data", "ct_liver=CASES", "--start", "STARTER", "--shared"), "no --data"),
        (("--data", "ct_liver=CASES", "--start", "STARTER", "--without", "controllers"), "design"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    cases: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    own = tmp_path / "dermoscopy.yaml"
    own.write_text(
        "title: Own\ndescription: Own.\ndimension: 2\nlabels: [lesion]\nintensity: {kind: range}\n",
        encoding="utf-8",
    )
    filled = [
        option.replace("CASES", str(cases))
        .replace("STARTER", str(starter_bundle_path()))
        .replace("OWN", str(own))
        for option in options
    ]
    assert train(*filled, "-o", tmp_path / "out", "--work", tmp_path / "w") == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_case_is_left_out(cases: Path, tmp_path: Path) -> None:
    assert train("--data", f"dermoscopy={cases}", "--leave-out", "dermoscopy=a", "-o",
                 tmp_path / "out", "--work", tmp_path / "w", *TINY) == 0  # fmt: skip
    (run,) = load_bundle(tmp_path / "out").description.training["runs"]
    assert run["data"]["dermoscopy"]["cases"] == 1


def test_training_knows_no_server() -> None:
    """So that it runs on any GPU host: torch, segment-anything, MONAI and readers of images."""
    code = (
        "import sys, esp_medsam_app.cli, esp_medsam_app.training.trainer, "
        "esp_medsam_app.training.distillation, esp_medsam_app.weights.sam_teachers; "
        "print({name.split('.')[0] for name in sys.modules} & "
        "{'monailabel', 'pynetdicom', 'pydicom_seg'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set()"
