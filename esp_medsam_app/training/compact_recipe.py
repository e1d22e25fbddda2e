"""The numbers of the compact profile's training."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from esp_medsam_app.training.losses import PixelLoss
from esp_medsam_app.training.recipe import Optimisation


class CompactRecipe(Optimisation):
    """Everything that decides a training of the compact profile beside its data.

    Modalities learn one after the other: each owns all that it trains.

    Attributes:
        size: side of the network's input, pixels. Multiples of 56 fill the encoder's windows.
        views: augmented views of each modality, which come again and again; none for fresh ones
            without end.
        cached_stage: encoder stage whose input is computed once for each view, 0 to 3, and beside
            it all that the teacher says of the view. Controllers of earlier stages stay as they
            are: 1 trains all of them. 0: nothing is kept, every step asks the teacher anew.
        absent: share of views that show nothing of the structure.
        steps: optimiser steps of each modality.
        batch: views of a batch.
        controller_rate: learning rate of the controllers.
        query_rate: learning rate of the queries.
        embedding_weight: of the distance to the teacher's embedding.
        soft_weight: of the cross-entropy to the teacher's soft masks.
        mask_weight: of the loss to the labels, as in the supervised training.
        pixel_loss: beside Dice.
        patch_weight: weight of SPPG's loss beside the mask loss.
    """

    folder: ClassVar[str] = "recipes/compact"
    size: int = Field(default=112, ge=32, multiple_of=8)
    views: int | None = Field(default=200, ge=1)
    cached_stage: int = Field(default=2, ge=0, le=3)
    absent: float = Field(default=0.12, ge=0, le=1)
    steps: int = Field(default=500, ge=0)
    batch: int = Field(default=2, ge=1)
    controller_rate: float = Field(default=5e-4, gt=0)
    query_rate: float = Field(default=1e-4, gt=0)
    embedding_weight: float = Field(default=5.0, ge=0)
    soft_weight: float = Field(default=1.0, ge=0)
    mask_weight: float = Field(default=1.0, ge=0)
    pixel_loss: PixelLoss = "focal"
    patch_weight: float = Field(default=0.5, ge=0)

    @model_validator(mode="after")
    def _kept_views_are_counted(self) -> Self:
        if self.cached_stage and self.views is None:
            raise ValueError("views must be a number where a stage is cached")
        return self
