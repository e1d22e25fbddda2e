"""The numbers of DeSAM's training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from esp_medsam_app.training.recipe import Optimisation
from esp_medsam_app.weights.desam_prompts import PROMPT_MODES, PromptMode

DEFAULT_RECIPE = "paper"


class DeSamRecipe(Optimisation):
    """Everything that decides a training of DeSAM beside its data; written into the bundle.

    The defaults are the paper's (arXiv 2306.00499); docs/desam.md says what differs from it. Each
    modality has a decoder of its own and learns by itself; encoder and prompt encoder stay frozen.

    Attributes:
        views: augmented views of each modality, which come again every epoch; none for every
            slice as it is, as in the paper.
        absent: share of views that show nothing of the structure; of slices as they are, how many
            without the structure are taken beside those that show it.
        epochs: passes over the views or slices.
        batch: views of a step.
        rate: learning rate at its highest.
        prompts: that are learned, in turns of a batch. A point is drawn anew for each view, as
            often in the structure as outside.
        dice_weight, cross_entropy_weight: of the masks' losses.
        iou_weight: of the IoU's loss, whose target is 1 where the point lies in the structure and
            else 0. The whole box has none.
        iou_loss: of the difference.
    """

    folder: ClassVar[str] = "recipes/desam"
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "exponential", "polynomial"] = "polynomial"
    warm_up: int = Field(default=0, ge=0)
    # far above any gradient: the paper clips nothing
    clip: float = Field(default=1000.0, gt=0)
    average: float = Field(default=0.0, ge=0, lt=1)
    views: int | None = Field(default=None, ge=1)
    absent: float = Field(default=0.12, ge=0, lt=1)
    epochs: int = Field(default=50, ge=0)
    batch: int = Field(default=8, ge=1)
    rate: float = Field(default=1e-4, gt=0)
    prompts: tuple[PromptMode, ...] = Field(default=PROMPT_MODES, min_length=1)
    dice_weight: float = Field(default=1.0, ge=0)
    cross_entropy_weight: float = Field(default=1.0, ge=0)
    iou_weight: float = Field(default=10.0, ge=0)
    iou_loss: Literal["squared", "absolute"] = "squared"

    def steps(self, views: int) -> int:
        """Optimiser steps of so many views."""
        return self.epochs * -(-views // (self.batch * self.accumulate))
