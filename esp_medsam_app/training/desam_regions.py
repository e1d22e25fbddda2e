"""How small a region of DeSAM's masks may be, told by the labels that it learns from.

The authors remove islands and close holes below 1000 of 256 x 256 pixels, which suits a prostate.
Of vessels or nuclei little would be left, and the meshes between vessels would be filled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.evaluation.metrics import mask_dice
from esp_medsam_app.inference.desam_masks import cleaned_mask, region_pixels
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.slice_tiles import SliceTiles

# What is left of the labels, their mean Dice with themselves, at least.
LEFT = 0.99
# Tiles that are looked at, and the share of the largest region that is tried after it.
TILES = 200
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)


def smallest_regions(
    caches: Mapping[str, SliceCache],
    modalities: Sequence[Modality],
    largest: int,
    *,
    tile: int,
) -> dict[str, int]:
    """Of each modality whose labels the rule would spoil, how small regions have to be instead.

    Args:
        caches: slices of each modality's cases, by name.
        modalities: that learn.
        largest: the rule, in pixels of a mask of 256 x 256.
        tile: side of the network's masks, pixels.
    """
    found = {}
    for modality in modalities:
        tiles = SliceTiles(caches[modality.name], modality, tile, most=TILES, empty=0)
        labels = (tiles[number][1].numpy() for number in range(len(tiles)))
        masks = [label == value for label in labels for value in modality.labels.values()]
        limit = harmless([mask for mask in masks if mask.any()], largest)
        if limit < largest:
            found[modality.name] = limit
    return found


def harmless(masks: Sequence[NDArray[np.bool_]], largest: int) -> int:
    """The largest limit, `largest` or less, that leaves masks nearly as they are; 0 if none does.

    Args:
        masks: `[S, S]` each, none of them empty.
        largest: in pixels of a mask of 256 x 256.
    """
    for share in SHARES:
        limit = round(share * largest)
        if limit > 1 and (not masks or _left(masks, limit) >= LEFT):
            return limit
    return 0


def _left(masks: Sequence[NDArray[np.bool_]], limit: int) -> float:
    """What a limit leaves of masks: their mean Dice with themselves."""
    cleaned = (cleaned_mask(mask, region_pixels(limit, mask.size)) for mask in masks)
    return float(np.mean([mask_dice(*both) for both in zip(masks, cleaned, strict=True)]))
