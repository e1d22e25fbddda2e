"""What training minimises."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# UN-SAM, by the same authors, weighs overlap and pixel-wise loss so; the paper's are not public.
DICE_WEIGHT = 0.8
# MONAI's, added above and below the line of Dice: a label that is nowhere costs nothing
SMOOTH = 1e-5
GAMMA = 2.0

PixelLoss = Literal["focal", "cross_entropy"]


class Losses(NamedTuple):
    """A batch's losses, scalars; `total` is what is minimised."""

    total: Tensor
    mask: Tensor
    patch: Tensor


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice of each label over the whole batch, the mean of all labels.

    MONAI's `DiceLoss(sigmoid=True, batch=True)`, operation by operation: a machine that only trains
    has no MONAI.

    Args:
        logits: float32 `[B, L, S, S]`.
        masks: 0 or 1, of the same shape and type.
    """
    axes = [0, 2, 3]
    marked = torch.sigmoid(logits)
    both = torch.sum(marked * masks, dim=axes)
    too_many = (torch.sum(marked, dim=axes) - both) * 0.5
    missed = (torch.sum(masks, dim=axes) - both) * 0.5
    overlap = (2 * both + SMOOTH) / (2 * (both + too_many + missed) + SMOOTH)
    return torch.mean(1 - overlap)


def focal_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Focal loss of each pixel, the mean of all: MONAI's `FocalLoss(gamma=2.0)`, as `dice_loss`."""
    cross_entropy = logits - logits * masks - F.logsigmoid(logits)
    log_wrong = F.logsigmoid(-logits * (masks * 2 - 1))
    return ((log_wrong * GAMMA).exp() * cross_entropy).mean()


class SegmentationLoss(nn.Module):
    """0.8 Dice + 0.2 pixel-wise loss of the masks, plus weighted cross-entropy of SPPG's patches.

    Each label is a binary problem of its own, as each is decoded by its own query. Dice is taken
    over the whole batch, so that views without the label do not dominate it.

    Args:
        patch_weight: of SPPG's loss. Its target is the max-pooled label map (paper, figure of the
            method).
        pixel: focal loss (gamma 2) of each pixel, or plain cross-entropy.
    """

    def __init__(self, patch_weight: float, pixel: PixelLoss = "focal") -> None:
        super().__init__()
        self.patch_weight = patch_weight
        self.pixel = focal_loss if pixel == "focal" else F.binary_cross_entropy_with_logits

    def forward(self, mask_logits: Tensor, patch_logits: Tensor | None, labels: Tensor) -> Losses:
        """The losses.

        Args:
            mask_logits: `[B, queries, S, S]`; query k decodes label k + 1.
            patch_logits: `[B, 1, P, P]`; none without SPPG.
            labels: label maps `[B, S, S]`.
        """
        ids = torch.arange(1, mask_logits.shape[1] + 1, device=labels.device)
        masks = (labels.unsqueeze(1) == ids[:, None, None]).float()
        mask_logits = mask_logits.float()
        mask = DICE_WEIGHT * dice_loss(mask_logits, masks)
        mask = mask + (1 - DICE_WEIGHT) * self.pixel(mask_logits, masks)
        if patch_logits is None:
            return Losses(mask, mask.detach(), mask.new_zeros(()))
        # windows of one size where S is a multiple of P
        shown = (labels > 0).float().unsqueeze(1)
        patches = F.adaptive_max_pool2d(shown, tuple(patch_logits.shape[-2:]))
        patch = F.binary_cross_entropy_with_logits(patch_logits.float(), patches)
        return Losses(mask + self.patch_weight * patch, mask.detach(), patch.detach())
