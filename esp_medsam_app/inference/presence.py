"""Whether the structure is there at all: SPPG's map of patches says so before any pixel is drawn.

A decoder that has learned from slices with the structure draws something into nearly every slice.
The map of patches is the better judge of that: where no patch of a tile reaches the threshold that
was fitted for the modality (`esp-medsam calibrate`), the tile's mask is empty.
"""

from __future__ import annotations

from torch import Tensor

from esp_medsam_app.networks import Segmentation

# Logits of pixels of a tile that is held empty, at most: where tiles overlap, a neighbour that
# does see the structure still counts.
_EMPTY = -1.0


def strongest_patch(segmentation: Segmentation) -> Tensor | None:
    """Of each tile, the largest logit of SPPG's map `[B]`; none for a design without SPPG."""
    if segmentation.patch_logits is None:
        return None
    return segmentation.patch_logits.float().flatten(1).amax(1)


def present_masks(segmentation: Segmentation, least: float | None) -> Tensor:
    """Mask logits `[B, queries, S, S]`, below 0 throughout where nothing is there.

    Args:
        segmentation: what the network gives for tiles.
        least: the logit that a patch has to reach; none: every tile may hold the structure.
    """
    masks = segmentation.mask_logits.float()
    strongest = strongest_patch(segmentation)
    if least is None or strongest is None:
        return masks
    absent = (strongest < least)[:, None, None, None]
    return masks.where(~absent, masks.clamp(max=_EMPTY))
