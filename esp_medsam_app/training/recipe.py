"""The numbers of a training run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """Everything that decides a training run beside its data; written into the bundle.

    The run has two phases. First the shared decoder, SPPG and the queries learn on embeddings of
    the unchanged backbone, which are computed once. Then they and the controllers learn together.
    The backbone stays frozen throughout.

    Attributes:
        seed: of everything random.
        views: augmented views made of each modality's training images.
        cached_stage: encoder stage whose input is computed once for each view, 1 to 3. Controllers
            of earlier stages stay neutral: 1 trains all of them, 2 leaves out the two blocks of
            stage 1 and halves the work.
        decoder_steps: optimiser steps of the first phase.
        decoder_batch: views a step in the first phase, all of one modality.
        joint_steps: optimiser steps of the second phase.
        joint_batch: views a step in the second phase.
        decoder_rate: learning rate of the decoder, which starts from released weights.
        joint_decoder_rate: the same in the second phase.
        fresh_rate: learning rate of SPPG and of the queries, which start fresh.
        controller_rate: learning rate of the controllers.
        weight_decay: of AdamW.
        patch_weight: weight of SPPG's loss beside the mask loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = 0
    views: int = Field(default=320, ge=1)
    cached_stage: int = Field(default=2, ge=1, le=3)
    decoder_steps: int = Field(default=600, ge=0)
    decoder_batch: int = Field(default=4, ge=1)
    joint_steps: int = Field(default=1600, ge=0)
    joint_batch: int = Field(default=2, ge=1)
    decoder_rate: float = Field(default=3e-4, gt=0)
    joint_decoder_rate: float = Field(default=1e-4, gt=0)
    fresh_rate: float = Field(default=1e-3, gt=0)
    controller_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    patch_weight: float = Field(default=0.5, ge=0)
