"""Sides of the network's input over a training: small ones first, large ones last.

A step costs with the square of the side, and what small inputs teach holds on large ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, field_validator

# Whole patches of SPPG need it: an eighth of the side behind the encoder's stride of four.
MULTIPLE = 8
SMALLEST, LARGEST = 32, 1024


class SizeStage(BaseModel):
    """Sides that are trained until a share of the steps is done.

    Attributes:
        until: share of all steps, above that of the stage before and at most 1.
        sizes: sides, pixels, drawn equally often; multiples of 8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    until: float = Field(gt=0, le=1)
    sizes: tuple[int, ...] = Field(min_length=1)

    @field_validator("sizes")
    @classmethod
    def _possible(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        for size in sizes:
            if size % MULTIPLE or not SMALLEST <= size <= LARGEST:
                raise ValueError(
                    f"{size} is not a multiple of {MULTIPLE} between {SMALLEST} and {LARGEST}"
                )
        return sizes


@dataclass(frozen=True)
class SizeSchedule:
    """The side of each batch's views.

    Attributes:
        stages: in their order; the last one ends at 1.
        batches: of the whole run.
        seed: same seed, same sides.
    """

    stages: Sequence[SizeStage]
    batches: int
    seed: int

    def size(self, number: int) -> int:
        """Side of the views of batch `number`, pixels: a function of the seed and the number."""
        done = number / max(1, self.batches)
        stage = next((s for s in self.stages if done < s.until), self.stages[-1])
        return random.Random(f"{self.seed}/{number}").choice(stage.sizes)
