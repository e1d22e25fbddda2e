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
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu

pytestmark = pytest.mark.e2e

SIDE = 256
BROWN_STAIN = """
title: Brown stain
description: What the brown stain marks.
dimension: 2
labels: [brown]
augmentation: {flips: [left_right, up_down], quarter_turns: true, rotation: 30, scale: 0.25}
"""


def esp_medsam(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "esp_medsam_app.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def halves(samples: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Pieces of real tissue: the upper ones to learn from, the lower ones to score.

    The structure is what the brown stain (DAB) marks, as colour deconvolution tells.
    """
    tissue = Image.open(samples / "studies" / "immunohistochemistry.png").convert("RGB")
    brown = gaussian_filter(rgb2hed(np.asarray(tissue))[..., 2], 4)
    labels = Image.fromarray((brown > threshold_otsu(brown)).astype(np.uint8))
    for row in range(2):
        for column in range(2):
            folder = tmp_path / ("train", "val")[row]
            box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
            for part, image in (("images", tissue), ("labels", labels)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                image.crop(box).save(folder / part / f"{column}.png")
    return tmp_path / "train", tmp_path / "val"


def dice(data: Path, bundle: Path, folder: Path) -> float:
    report = folder / f"{bundle.name}.json"
    common = ("evaluate", "--data", data, "-m", "brown_stain")
    esp_medsam(*common, "--bundle", bundle, "--json", report)
    return float(json.loads(report.read_text())["dice"]["mean"])


def test_dice_rises_on_pieces_that_were_not_trained_on(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    """A modality of one's own, whose colour tells the structure: its rule leaves colours alone."""
    train, val = halves
    own = tmp_path / "brown_stain.yaml"
    own.write_text(BROWN_STAIN, encoding="utf-8")
    common = ("train", "--data", f"{own}={train}", "--seed", "1", "--set", "views=8",
              "--set", "decoder_batch=2", "--set", "joint_batch=2")  # fmt: skip
    for name, steps in (("before", (1, 0)), ("after", (40, 4))):
        said = esp_medsam(*common, "--set", f"decoder_steps={steps[0]}", "--set",
                          f"joint_steps={steps[1]}", "--work", tmp_path / f"w_{name}",
                          "-o", tmp_path / name)  # fmt: skip
    losses = [float(value) for value in re.findall(r"decoder: .* loss ([\d.]+)", said)]
    assert losses[-1] < 0.9 * losses[0]
    before, after = (dice(val, tmp_path / name, tmp_path) for name in ("before", "after"))
    assert after > before + 0.15
    assert after > 0.4
