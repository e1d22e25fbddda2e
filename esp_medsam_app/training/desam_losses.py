"""What DeSAM's training minimises, and the points it is prompted with."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from esp_medsam_app.networks.desam import PROMPT_FRAME
from esp_medsam_app.training.desam_recipe import DeSamRecipe


class DeSamLosses(NamedTuple):
    """A batch's losses, scalars; `total` is what is minimised."""

    total: Tensor
    mask: Tensor
    iou: Tensor


class DeSamLoss(nn.Module):
    """Dice and cross-entropy of the masks, and of points the error of the predicted IoU.

    Each label is a binary problem of its own. Dice with squared terms, as the authors have it, but
    over the whole batch: here slices without the structure are learned from too, whose own Dice
    would say nothing.
    """

    def __init__(self, recipe: DeSamRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.dice = DiceLoss(sigmoid=True, squared_pred=True, batch=True)

    def forward(
        self, mask_logits: Tensor, labels: Tensor, iou: Tensor, hits: Tensor | None
    ) -> DeSamLosses:
        """The losses.

        Args:
            mask_logits: `[B, L, S, S]`; map k is of label k + 1.
            labels: label maps `[B, S, S]`.
            iou: predicted, `[B, L]`.
            hits: whether the points lie in the labels, `[B, L]`; none for boxes.
        """
        ids = torch.arange(1, mask_logits.shape[1] + 1, device=labels.device)
        masks = (labels.unsqueeze(1) == ids[:, None, None]).float()
        logits, weights = mask_logits.float(), self.recipe
        mask = weights.dice_weight * self.dice(logits, masks)
        if weights.cross_entropy_weight:
            pixels = F.binary_cross_entropy_with_logits(logits, masks)
            mask = mask + weights.cross_entropy_weight * pixels
        if hits is None:
            return DeSamLosses(mask, mask.detach(), mask.new_zeros(()))
        measure = F.mse_loss if weights.iou_loss == "squared" else F.l1_loss
        error = measure(iou.float(), hits.float())
        return DeSamLosses(mask + weights.iou_weight * error, mask.detach(), error.detach())


def random_points(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A pixel of each label map `[B, S, S]`, as often in the structure as outside: `[B, 2]` (x, y).

    Of several labels each is as likely. Where the map has nothing of what was drawn, any pixel.
    """
    places = []
    for label_map in labels:
        flat = label_map.flatten()
        present = flat.unique()
        present = present[present > 0]
        inside = bool(torch.rand((), generator=generator) < 0.5) and len(present) > 0
        wanted = flat == 0
        if inside:
            chosen = torch.randint(len(present), (), generator=generator)
            wanted = flat == present[chosen]
        candidates = wanted.nonzero().flatten()
        if not len(candidates):
            candidates = torch.arange(len(flat))
        pixel = int(candidates[torch.randint(len(candidates), (), generator=generator)])
        row, column = divmod(pixel, label_map.shape[1])
        places.append([column, row])
    return torch.tensor(places)


def in_frame(places: Tensor, side: int) -> Tensor:
    """Pixels `[B, 2]` of a map of this side, in the frame of the prompts."""
    return places.float() * (PROMPT_FRAME / side)


def pixels_of(frame: Tensor, side: int) -> Tensor:
    """The inverse of `in_frame`, also of numbers that were rounded to bfloat16 in between."""
    return (frame * (side / PROMPT_FRAME)).round().long().clamp(0, side - 1)


def hits_of(labels: Tensor, places: Tensor, count: int) -> Tensor:
    """Whether pixels `[B, 2]` (x, y) of label maps `[B, S, S]` lie in labels 1 to `count`."""
    index = torch.arange(len(labels), device=labels.device)
    places = places.to(labels.device)
    found = labels[index, places[:, 1], places[:, 0]]
    ids = torch.arange(1, count + 1, device=labels.device)
    return found.unsqueeze(1) == ids
