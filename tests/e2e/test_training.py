"""Training on real images by the command a user runs: the loss falls and Dice on others rises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.filters import apply_hysteresis_threshold, sato

pytestmark = pytest.mark.e2e

SIDE = 256


def esp_medsam(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "esp_medsam_app.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def halves(samples: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Pieces of a real fundus photograph: the upper ones to learn from, the lower ones to score.

    Their reference is what a ridge filter finds; no person drew one for this photograph.
    """
    photograph = Image.open(samples / "studies" / "retina.jpg").resize((4 * SIDE, 4 * SIDE))
    green = np.asarray(photograph)[..., 1].astype(float)
    ridges = sato(green, sigmas=(3, 5), black_ridges=True)
    vessels = apply_hysteresis_threshold(ridges, 2.5, 5.0)
    for row in range(4):
        for column in (1, 2):
            folder = tmp_path / ("train" if row < 2 else "val")
            box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
            name = f"{row}_{column}.png"
            labels = Image.fromarray(vessels.astype(np.uint8))
            for part, image in (("images", photograph), ("labels", labels)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                image.crop(box).save(folder / part / name)
    return tmp_path / "train", tmp_path / "val"


def dice(data: Path, bundle: Path, folder: Path) -> float:
    report = folder / f"{bundle.name}.json"
    esp_medsam("evaluate", "--data", data, "-m", "dermoscopy", "--bundle", bundle, "--json", report,
               "--limit", "2")  # fmt: skip
    return float(json.loads(report.read_text())["dice"]["mean"])


def test_dice_rises_on_pieces_that_were_not_trained_on(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    """`dermoscopy` lends its rule of one tile: the modality is a fresh one, not the starter's."""
    train, val = halves
    common = ("train", "--data", f"dermoscopy={train}", "--seed", "1", "--set", "views=8",
              "--set", "decoder_batch=2", "--set", "joint_batch=2")  # fmt: skip
    for name, steps in (("before", (1, 0)), ("after", (40, 6))):
        said = esp_medsam(*common, "--set", f"decoder_steps={steps[0]}", "--set",
                          f"joint_steps={steps[1]}", "--work", tmp_path / f"w_{name}",
                          "-o", tmp_path / name)  # fmt: skip
    losses = [float(value) for value in re.findall(r"decoder: .* loss ([\d.]+)", said)]
    assert losses[-1] < 0.9 * losses[0]
    before, after = (dice(val, tmp_path / name, tmp_path) for name in ("before", "after"))
    assert after > before + 0.15
    assert after > 0.4
