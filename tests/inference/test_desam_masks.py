"""From prompts to masks: grid, thresholds, suppression, small regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from torchvision.ops import masks_to_boxes, nms

from esp_medsam_app.inference.desam_masks import (
    NOTHING,
    chosen_masks,
    cleaned_mask,
    point_grid,
    prompted_masks,
    without_small_regions,
)
from esp_medsam_app.networks import DeSam, TinyViT
from esp_medsam_app.networks.desam import PROMPT_FRAME
from esp_medsam_app.weights.desam_prompts import MaskRules

ALL = MaskRules(most=0, iou_threshold=0.5, nms_threshold=0.7, smallest_region=0)
masks_of_any_kind = arrays.arrays(np.bool_, (12, 12))


@given(st.integers(1, 12))
def test_the_grid_is_even_and_symmetric(side: int) -> None:
    grid = point_grid(side)
    assert grid.shape == (side**2, 2)
    assert torch.allclose(grid.flip(0), PROMPT_FRAME - grid)
    assert torch.allclose(grid[1:side, 0] - grid[: side - 1, 0], torch.tensor(PROMPT_FRAME / side))
    # x runs fastest
    assert grid[0, 1] == grid[side - 1, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_suppression_is_that_of_torchvision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.full((6, 16, 16), -1.0)
    for mask in logits:
        (top, left), (height, width) = rng.integers(0, 6, 2), rng.integers(0, 11, 2)
        mask[top : top + height, left : left + width] = 1.0
    ious = torch.from_numpy(rng.permutation(6) / 5 + 1e-3).float()
    fit = [i for i in range(6) if ious[i] > 0.5 and (logits[i] > 0).any()]
    expected = []
    if fit:
        kept = nms(masks_to_boxes(logits[fit] > 0), ious[fit], 0.7)
        expected = [fit[i] for i in kept.tolist()]
    assert [index for index, _ in chosen_masks(ious, logits.__getitem__, ALL)] == expected


def test_no_more_masks_are_drawn_than_are_kept() -> None:
    drawn: list[int] = []

    def draw(index: int) -> torch.Tensor:
        drawn.append(index)
        return torch.ones(4, 4) * (index != 2)

    first = chosen_masks(
        torch.tensor([0.6, 0.8, 0.9, 0.7]), draw, ALL.model_copy(update={"most": 1})
    )
    # the best point draws nothing, so the second best counts
    assert [index for index, _ in first] == [1]
    assert drawn == [2, 1]


@given(masks_of_any_kind, st.integers(1, 40))
def test_cleaning_leaves_no_small_region(mask: np.ndarray, smallest: int) -> None:
    cleaned = cleaned_mask(mask, smallest)
    islands, count = ndimage.label(cleaned, np.ones((3, 3)))
    sizes = np.bincount(islands.ravel())[1:]
    assert count <= 1 or sizes.min() >= smallest
    assert not mask.any() or cleaned.any()
    # filling may close all of it, but removing never empties what was there
    outside, _ = ndimage.label(~cleaned, np.ones((3, 3)))
    assert cleaned_mask(cleaned, 1).sum() == (outside == 0).sum()


def test_a_hole_is_filled_and_an_island_removed_but_the_largest_stays() -> None:
    mask = np.zeros((12, 12), bool)
    mask[1:7, 1:7] = True
    mask[3, 3] = False
    mask[10, 10] = True
    expected = np.zeros((12, 12), bool)
    expected[1:7, 1:7] = True
    assert np.array_equal(cleaned_mask(mask, 4), expected)
    assert np.array_equal(cleaned_mask(mask, 100_000), np.ones((12, 12), bool))
    assert not cleaned_mask(np.zeros((12, 12), bool), 4).any()


@settings(deadline=None)
@given(masks_of_any_kind, st.integers(1, 40))
def test_logits_change_sides_exactly_where_the_mask_was_cleaned(
    mask: np.ndarray, smallest: int
) -> None:
    logits = torch.where(torch.from_numpy(mask), 2.0, -3.0)[None, None]
    after = without_small_regions(logits, smallest)
    assert np.array_equal(after[0, 0].numpy() > 0, cleaned_mask(mask, smallest))
    same = (after > 0) == (logits > 0)
    assert torch.equal(after[same], logits[same])


@pytest.fixture(scope="module")
def network() -> DeSam:
    torch.manual_seed(1)
    network = DeSam(TinyViT())
    network.add_modality("two", 2)
    return network.eval().requires_grad_(False)


def test_both_modes_and_the_threshold(network: DeSam) -> None:
    images = torch.rand(2, 3, 32, 32)
    few = ALL.model_copy(update={"points_per_side": 4})
    features = network.encode(images)
    box = prompted_masks(network, features, "two", "whole_box", few)
    assert box.shape == (2, 2, 32, 32)
    none = few.model_copy(update={"iou_threshold": 1.0})
    network.decoder("two").prim.iou_prediction_head.layers[-1].bias.data.fill_(0.0)
    assert (prompted_masks(network, features, "two", "grid_points", none) == NOTHING).all()
    every = few.model_copy(update={"iou_threshold": -1.0, "most": 1})
    found = prompted_masks(network, features, "two", "grid_points", every)
    tokens = network.points(point_grid(4))
    for image, logits in zip(images, found, strict=True):
        features = network.encode(image[None])
        ious = network.relate("two", features.embedding, tokens).iou
        for label in range(2):
            best = ious[:, label].argmax()
            alone = network(features, "two", tokens[best : best + 1]).mask_logits[0, label]
            if (alone > 0).any():
                torch.testing.assert_close(logits[label], alone, rtol=1e-3, atol=1e-3)
