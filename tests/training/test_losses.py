"""What training minimises."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss
from torch import nn
from torch.nn.functional import max_pool2d

from esp_medsam_app.training.losses import PixelLoss, SegmentationLoss, dice_loss, focal_loss


@pytest.fixture
def labels() -> torch.Tensor:
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    labels[:, 4:20, 4:20] = 1
    labels[:, 20:28, 20:28] = 2
    return labels


@pytest.mark.parametrize("pixel", ["focal", "cross_entropy"])
def test_loss_prefers_the_truth(labels: torch.Tensor, pixel: PixelLoss) -> None:
    masks = torch.stack([labels == 1, labels == 2], dim=1).float() * 20 - 10
    patches = max_pool2d((labels > 0).float().unsqueeze(1), 8) * 20 - 10
    loss = SegmentationLoss(0.5, pixel)
    right = loss(masks, patches, labels).total
    assert right < 0.01
    assert loss(masks.flip(1), patches, labels).total > 0.5
    assert loss(masks, -patches, labels).total > right + 1


def test_mask_loss_weighs_dice_and_focal(labels: torch.Tensor) -> None:
    """0.8 Dice + 0.2 focal, worked out by hand for a constant logit of 0."""
    masks = torch.zeros(2, 1, 32, 32)
    truth = (labels == 1).float()
    share = truth.mean()
    dice = 1 - 2 * (0.5 * share) / (0.5 + share)
    focal = 0.5**2 * math.log(2)
    found = SegmentationLoss(0.0)(masks, None, labels)
    assert found.mask.item() == pytest.approx(float(0.8 * dice + 0.2 * focal), abs=1e-4)
    assert found.patch.item() == 0


def test_false_alarms_cost_on_views_without_the_structure() -> None:
    empty = torch.zeros(1, 32, 32, dtype=torch.uint8)
    loss = SegmentationLoss(0.0)
    silent, loud = (loss(torch.full((1, 1, 32, 32), v), None, empty).total for v in (-9.0, 9.0))
    assert loud > silent + 0.5


@pytest.mark.parametrize(
    ("own", "library"),
    [(dice_loss, DiceLoss(sigmoid=True, batch=True)), (focal_loss, FocalLoss(gamma=2.0))],
)
def test_losses_are_those_of_the_library_bit_by_bit(
    own: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], library: nn.Module
) -> None:
    """A training that went on under the library goes on as it was."""
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(3, 2, 32, 32, generator=generator) < 0.3).float()
    masks[:, 1] = 0
    results = []
    for loss in (own, library):
        logits = 4 * torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(1))
        logits.requires_grad_(True)
        value = loss(logits, masks)
        value.backward()
        results.append((value, logits.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
