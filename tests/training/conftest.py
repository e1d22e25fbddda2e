"""A small problem for the training: discs on noise, on the real backbone with a small input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esp_medsam_app.evaluation.pairs import CasePair, find_pairs
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.weights.backbones import LITE_MEDSAM, Backbone

SIDE = 64
TILE = 32


@pytest.fixture
def small_backbone() -> Backbone:
    return replace(LITE_MEDSAM, input_size=TILE)


@pytest.fixture
def disc() -> Modality:
    return Modality(name="disc", title="", description="", dimension=2, labels={"disc": 1})


@pytest.fixture
def small_recipe() -> Recipe:
    return Recipe(
        views=8,
        cached_stage=1,
        absent=0.0,
        decoder_steps=12,
        decoder_batch=4,
        joint_steps=12,
        joint_batch=4,
        average=0.5,
    )


@pytest.fixture
def disc_pairs(tmp_path: Path) -> list[CasePair]:
    """Four pictures of a bright disc on noise."""
    folder = tmp_path / "discs"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in range(4):
        row, column = rng.integers(20, 44, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < 14**2
        grey = rng.normal(60 + 120 * disc, 12).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / "images" / f"{index}.png")
        Image.fromarray(disc.astype(np.uint8)).save(folder / "labels" / f"{index}.png")
    return find_pairs([folder])
