"""Data that several commands are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Two pictures of a bright block, with their labels."""
    folder = tmp_path / "cases"
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name in ("a", "b"):
        labels = np.zeros((48, 64), np.uint8)
        labels[10:30, 20:40] = 1
        image = (60 + 120 * labels + rng.normal(0, 8, labels.shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    return folder
