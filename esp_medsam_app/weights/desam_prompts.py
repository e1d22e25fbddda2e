"""How DeSAM is prompted without a person."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

PromptMode = Literal["whole_box", "grid_points"]
PROMPT_MODES: tuple[PromptMode, ...] = get_args(PromptMode)


class MaskRules(BaseModel):
    """From prompts to masks; the defaults are those of DeSAM's authors.

    Attributes:
        points_per_side: of the grid of points.
        iou_threshold: a point whose mask is predicted to overlap less with the structure is left
            out.
        nms_threshold: of two masks whose boxes overlap more, the one of the lower predicted IoU is
            left out.
        most: masks of a label that are united, at most; 0: all that are left. The authors take the
            first.
        smallest_region: islands and holes of fewer pixels of the network's mask (256 x 256) are
            removed, but for the largest island; of both modes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    points_per_side: int = Field(default=9, ge=1, le=64)
    iou_threshold: float = Field(default=0.5, ge=-1, le=1)
    nms_threshold: float = Field(default=0.7, ge=0, le=1)
    most: int = Field(default=1, ge=0)
    smallest_region: int = Field(default=1000, ge=0)
