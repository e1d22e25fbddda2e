"""Tiles that hold nothing have no mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from esp_medsam_app.inference.presence import present_masks, strongest_patch
from esp_medsam_app.networks import Segmentation


def seen(*strongest: float) -> Segmentation:
    """Two labels, masked everywhere; one patch of each tile stands out."""
    count = len(strongest)
    patches = torch.full((count, 1, 4, 4), -8.0)
    patches[:, 0, 1, 2] = torch.tensor(strongest)
    masks = torch.linspace(-3, 6, count * 2 * 64).reshape(count, 2, 8, 8)
    return Segmentation(masks, patches, torch.zeros(count, 256, 8, 8))


@pytest.fixture
def three() -> Segmentation:
    return seen(-1.0, 0.5, 2.0)


def test_what_sppg_sees_nothing_in_is_empty(three: Segmentation) -> None:
    masks = present_masks(three, 0.5)
    assert (masks[0] < 0).all()
    assert torch.equal(masks[1:], three.mask_logits[1:])


@pytest.mark.parametrize("least", [None, -1.0])
def test_without_a_limit_nothing_changes(three: Segmentation, least: float | None) -> None:
    assert torch.equal(present_masks(three, least), three.mask_logits)


def test_a_design_without_sppg_has_no_limit(three: Segmentation) -> None:
    blind = three._replace(patch_logits=None)
    assert strongest_patch(blind) is None
    assert torch.equal(present_masks(blind, 9.0), three.mask_logits)


def test_a_neighbour_that_sees_it_still_counts_where_tiles_overlap() -> None:
    masks: Tensor = present_masks(seen(-1.0, 2.0), 0.0)
    assert ((masks[0] + 6.0) / 2 > 0).all()


def test_in_any_precision(three: Segmentation) -> None:
    low = Segmentation(*(part.bfloat16() for part in three if part is not None))
    assert present_masks(low, 0.6).dtype == torch.float32
