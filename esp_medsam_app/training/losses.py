"""What training minimises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

# UN-SAM, by the same authors, weighs overlap and pixel-wise loss so; the paper's are not public.
DICE_WEIGHT = 0.8


class SegmentationLoss(nn.Module):
    """0.8 Dice + 0.2 cross-entropy of the masks, plus weighted cross-entropy of SPPG's patches.

    Each label is a binary problem of its own, as each is decoded by its own query. Dice is taken
    over the whole batch, so that views without the label do not dominate it.

    Args:
        patch_weight: of SPPG's loss.
    """

    def __init__(self, patch_weight: float) -> None:
        super().__init__()
        self.patch_weight = patch_weight
        self.dice = DiceLoss(sigmoid=True, batch=True)

    def forward(self, mask_logits: Tensor, patch_logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            mask_logits: `[B, queries, S, S]`; query k decodes label k + 1.
            patch_logits: `[B, 1, P, P]`, S a multiple of P.
            labels: label maps `[B, S, S]`.
        """
        ids = torch.arange(1, mask_logits.shape[1] + 1, device=labels.device)
        masks = (labels.unsqueeze(1) == ids[:, None, None]).float()
        mask_logits = mask_logits.float()
        mask_loss = DICE_WEIGHT * self.dice(mask_logits, masks) + (
            1 - DICE_WEIGHT
        ) * F.binary_cross_entropy_with_logits(mask_logits, masks)
        patch = labels.shape[-1] // patch_logits.shape[-1]
        patches = F.max_pool2d((labels > 0).float().unsqueeze(1), patch)
        patch_loss = F.binary_cross_entropy_with_logits(patch_logits.float(), patches)
        return mask_loss + self.patch_weight * patch_loss
