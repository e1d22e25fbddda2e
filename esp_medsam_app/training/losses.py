"""What training minimises."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

# UN-SAM, by the same authors, weighs overlap and pixel-wise loss so; the paper's are not public.
DICE_WEIGHT = 0.8

PixelLoss = Literal["focal", "cross_entropy"]


class Losses(NamedTuple):
    """A batch's losses, scalars; `total` is what is minimised."""

    total: Tensor
    mask: Tensor
    patch: Tensor


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
        self.dice = DiceLoss(sigmoid=True, batch=True)
        self.pixel: nn.Module = FocalLoss(gamma=2.0) if pixel == "focal" else nn.BCEWithLogitsLoss()

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
        mask = DICE_WEIGHT * self.dice(mask_logits, masks)
        mask = mask + (1 - DICE_WEIGHT) * self.pixel(mask_logits, masks)
        if patch_logits is None:
            return Losses(mask, mask.detach(), mask.new_zeros(()))
        # windows of one size where S is a multiple of P
        shown = (labels > 0).float().unsqueeze(1)
        patches = F.adaptive_max_pool2d(shown, tuple(patch_logits.shape[-2:]))
        patch = F.binary_cross_entropy_with_logits(patch_logits.float(), patches)
        return Losses(mask + self.patch_weight * patch, mask.detach(), patch.detach())
