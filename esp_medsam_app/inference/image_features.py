"""What an image as a whole looks like to the plain backbone, as some hundred numbers.

For telling modalities apart: no modality's own rule of intensities or tiles takes part.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.modalities import Intensity, Tiles
from esp_medsam_app.networks.tiny_vit import TinyViT

# Of a volume, so many slices are looked at, spread over this middle part of it.
SLICES = 3
MIDDLE = (0.25, 0.75)

# Air, and something harder than soft tissue: only Hounsfield units reach from one to the other.
_AIR, _DENSE = -500, 150
_SOFT_TISSUE = Intensity(kind="window", low=-100, high=300)
_PICTURE = Intensity(kind="range")
_VALUES = Intensity(kind="percentiles", low=0.5, high=99.5)


def features_of(encoder: TinyViT, image: MedicalImage, side: int) -> Tensor:
    """Features `[F]` of an image: the mean over its slices.

    Args:
        encoder: the plain backbone, on any device.
        image: picture or volume.
        side: of the square that each slice is scaled to, pixels.

    Raises:
        InputError: nothing to see: equal voxels, or slices of fewer than 8 pixels.
    """
    tiles = tiles_of(middle_slices(image), side)
    # one by one: a third of the memory
    return torch.cat([pooled(encoder, tile) for tile in tiles.split(1)]).mean(dim=0)


def middle_slices(image: MedicalImage) -> NDArray[np.generic]:
    """`[S, H, W(, 3)]`: the picture, or `SLICES` of the volume from its middle."""
    slices = SliceView.of(image.grid).slices(image.voxels)
    count = len(slices)
    wanted = np.linspace(MIDDLE[0] * (count - 1), MIDDLE[1] * (count - 1), min(SLICES, count))
    return slices[np.unique(wanted.round().astype(int))]


def tiles_of(slices: NDArray[np.generic], side: int) -> Tensor:
    """Whole slices scaled and padded to squares, as LiteMedSAM does: `[S, 3, side, side]`.

    Grey values run from minimum to maximum, without outliers where they are no 8-bit picture; CT
    in Hounsfield units is shown in a window of soft tissue.
    """
    tiling = Tiling(slices.shape[1], slices.shape[2], side, Tiles())
    scale = IntensityScale.of(slices, _intensity(slices))
    return tiling.cut(tiling.scale(scale.apply(slices)), (0, 0))


@torch.inference_mode()
def pooled(encoder: TinyViT, tiles: Tensor) -> Tensor:
    """Mean and spread of every channel over the image, `[S, F]` float32 on the CPU.

    Of the channels that enter the encoder's stage 2, where colour and grain show, and of the
    embedding, where structures do.
    """
    device = next(encoder.parameters()).device
    early = encoder.encode_until(tiles.to(device), 2)
    late = encoder.encode_from(early, 2)
    numbers = [
        number
        for features in (early, late)
        for number in (features.mean(dim=(2, 3)), features.std(dim=(2, 3)))
    ]
    return torch.cat(numbers, dim=1).float().cpu()


def _intensity(slices: NDArray[np.generic]) -> Intensity:
    if slices.dtype == np.uint8:
        return _PICTURE
    if slices.min() < _AIR and slices.max() > _DENSE:
        return _SOFT_TISSUE
    return _VALUES
