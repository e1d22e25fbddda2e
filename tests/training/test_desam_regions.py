"""The limit of region sizes that labels tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.evaluation.metrics import mask_dice
from esp_medsam_app.evaluation.pairs import find_pairs
from esp_medsam_app.inference.desam_masks import cleaned_mask
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.desam_regions import LEFT, harmless, smallest_regions
from esp_medsam_app.training.surroundings import Surroundings

SIDE = 256
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def disc(row: int, column: int, radius: int) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (ROWS - row) ** 2 + (COLUMNS - column) ** 2 < radius**2
    return found


def meshes(step: int) -> NDArray[np.bool_]:
    """Thin lines, and between them holes of `step` x `step` pixels less a line."""
    found: NDArray[np.bool_] = (ROWS % step < 2) | (COLUMNS % step < 2)
    return found


def test_one_structure_may_have_the_authors_rule() -> None:
    assert harmless([disc(128, 128, 60), disc(80, 100, 9)], 1000) == 1000


def test_meshes_are_not_filled() -> None:
    """Holes are of 30 x 30, 14 x 14 and 6 x 6 pixels."""
    assert [harmless([meshes(step)], 1000) for step in (32, 16, 8)] == [300, 100, 30]


def test_many_small_structures_stay() -> None:
    small = np.zeros((SIDE, SIDE), bool)
    for row in range(20, SIDE, 40):
        for column in range(20, SIDE, 40):
            small |= disc(row, column, 5)
    limit = harmless([small], 1000)
    assert 0 < limit < 100
    assert np.array_equal(cleaned_mask(small, limit), small)


def test_nothing_is_removed_where_every_limit_spoils() -> None:
    assert harmless([meshes(4)], 1000) == harmless([meshes(32)], 0) == 0


def test_sizes_are_those_of_a_mask_of_256() -> None:
    large = disc(128, 128, 60) | disc(20, 20, 12)
    small = large[::2, ::2]
    assert harmless([large], 1000) == harmless([small], 1000)


@given(st.lists(st.tuples(*[st.integers(4, 60)] * 3), min_size=1, max_size=6))
def test_labels_stay_nearly_as_they_are(discs: list[tuple[int, int, int]]) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    for row, column, radius in discs:
        mask |= disc(4 * row, 4 * column, radius // 2)
    limit = harmless([mask], 1000)
    assert 0 <= limit <= 1000
    assert mask_dice(mask, cleaned_mask(mask, limit)) >= LEFT or limit == 0


@pytest.mark.parametrize(("step", "told"), [(16, {"lines": 100}), (0, {})])
def test_only_modalities_that_the_rule_would_spoil_are_told(
    step: int, told: dict[str, int], tmp_path: Path
) -> None:
    modality = Modality(name="lines", title="", description="", dimension=2, labels={"line": 1})
    labels = meshes(step) if step else disc(128, 128, 60)
    for folder, pixels in (("images", 90 * labels + 80), ("labels", labels)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / "one.png")
    place = Surroundings(tmp_path / "work", device="cpu")
    caches = prepare_caches({"lines": find_pairs([tmp_path])}, [modality], tile=SIDE, place=place)
    found = smallest_regions(caches, [modality], 1000, tile=SIDE)
    assert found == told
