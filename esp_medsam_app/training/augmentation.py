"""What may change in a training view without making it another: geometry, intensity, acquisition.

Most transforms are MONAI's. Acquisition changes imitate other devices and sites, so that a modality
holds on images from a place it was not trained on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandGibbsNoised,
    RandomizableTransform,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    RandSpatialCropd,
    SpatialPadd,
)
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from esp_medsam_app.modalities import Augmentation

IMAGE, LABEL = "image", "label"


def augmentation(rule: Augmentation, tile: int) -> Compose:
    """Random transform of `image` `[3, h, w]` in [0, 1] and `label` `[1, h, w]` to a tile each."""
    return Compose([*_geometry(rule, tile), *_acquisition(rule), *_intensity(rule)])


def _geometry(rule: Augmentation, tile: int) -> list[object]:
    keys = (IMAGE, LABEL)
    steps: list[object] = [
        RandAffined(
            keys,
            prob=0.8,
            rotate_range=np.deg2rad(rule.rotation),
            scale_range=(rule.scale, rule.scale),
            translate_range=tile * 0.05,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        ),
        SpatialPadd(keys, (tile, tile), method="end"),
        RandSpatialCropd(keys, (tile, tile), random_size=False),
    ]
    # images are [C, rows, columns]: axis 1 mirrors left and right
    steps += [
        RandFlipd(keys, prob=0.5, spatial_axis={"up_down": 0, "left_right": 1}[flip])
        for flip in rule.flips
    ]
    if rule.quarter_turns:
        steps.append(RandRotate90d(keys, prob=0.75, max_k=3))
    return steps


def _acquisition(rule: Augmentation) -> list[object]:
    makers = {
        "colour": lambda: RandColour(IMAGE, prob=0.5),
        "inversion": lambda: RandInversion(IMAGE, prob=0.15),
        "illumination": lambda: RandBiasFieldd(IMAGE, degree=3, coeff_range=(0, 0.25), prob=0.3),
        "low_resolution": lambda: RandSimulateLowResolutiond(
            IMAGE, prob=0.2, zoom_range=(0.4, 0.9), upsample_mode="bilinear"
        ),
        "ringing": lambda: RandGibbsNoised(IMAGE, prob=0.15, alpha=(0.0, 0.6)),
        "speckle": lambda: RandSpeckle(IMAGE, prob=0.3),
        "window": lambda: RandWindow(IMAGE, prob=0.35),
    }
    return [makers[change]() for change in rule.acquisition]


def _intensity(rule: Augmentation) -> list[object]:
    strength = rule.intensity
    if not strength:
        return []
    return [
        RandAdjustContrastd(IMAGE, prob=0.5, gamma=(1 / (1 + strength), 1 + strength)),
        RandScaleIntensityd(IMAGE, factors=0.3 * strength, prob=0.5),
        RandShiftIntensityd(IMAGE, offsets=0.15 * strength, prob=0.5),
        RandGaussianSmoothd(
            IMAGE, prob=0.15, sigma_x=(0.3, 2 * strength), sigma_y=(0.3, 2 * strength)
        ),
        RandGaussianNoised(IMAGE, prob=0.3, std=0.08 * strength),
    ]


class _RandImage(RandomizableTransform, MapTransform):
    """Base of a random change of the image alone."""

    def __init__(self, keys: str, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(changed):
                changed[key] = self.change(torch.as_tensor(changed[key])).clamp(0, 1)
        return changed

    def change(self, image: Tensor) -> Tensor:
        """`[3, h, w]` in [0, 1] to the same."""
        raise NotImplementedError


class RandColour(_RandImage):
    """Saturation from grey to vivid and a cast of each channel, as stains and cameras differ."""

    def change(self, image: Tensor) -> Tensor:
        saturation = self.R.uniform(0.0, 1.6)
        cast = torch.tensor(self.R.uniform(0.8, 1.25, (3, 1, 1)), dtype=image.dtype)
        grey = image.mean(dim=0, keepdim=True)
        return (grey + saturation * (image - grey)) * cast


class RandInversion(_RandImage):
    """Dark on bright becomes bright on dark: stained tissue and fluorescence."""

    def change(self, image: Tensor) -> Tensor:
        return 1 - image


class RandSpeckle(_RandImage):
    """Multiplicative noise of ultrasound, a grain of some pixels."""

    def change(self, image: Tensor) -> Tensor:
        grain = int(self.R.randint(1, 4))
        size = tuple(-(-extent // grain) for extent in image.shape[-2:])
        noise = torch.from_numpy(self.R.rayleigh(1.0, size).astype(np.float32))
        noise = noise.repeat_interleave(grain, 0).repeat_interleave(grain, 1)
        noise = noise[: image.shape[-2], : image.shape[-1]] / 1.2533  # mean of the distribution
        return image * (1 + self.R.uniform(0.2, 0.6) * (noise - 1))


class RandWindow(_RandImage):
    """A wider CT window, as of pictures that were exported with the scanner's whole range."""

    def change(self, image: Tensor) -> Tensor:
        # floats of NumPy would make an array of the image
        ground, contrast = map(float, self.R.uniform((0.2, 0.15), (0.5, 0.6)))
        return wider_window(image, ground, contrast)


def wider_window(tile: Tensor, ground: float, contrast: float) -> Tensor:
    """A slice as a wider window shows it: the body's darkest parts are grey, air stays black.

    Args:
        tile: `[3, h, w]` in [0, 1].
        ground: grey of what is black within the body.
        contrast: grey between that and what is white.
    """
    body = torch.from_numpy(binary_fill_holes((tile.mean(dim=0) > 0.05).numpy()))
    return torch.where(body, (ground + contrast * tile).clamp(max=1), tile)
