"""Colours as cameras, endoscopes, stains and scanners differ in them."""

from __future__ import annotations

import torch
from torch import Tensor

from esp_medsam_app.training.augmentation.draw import Draw


def saturation_and_cast(images: Tensor, draw: Draw) -> Tensor:
    """Saturation from grey to vivid, and another white balance."""
    count = len(images)
    mean = images.mean(dim=1, keepdim=True)
    cast = torch.cat([draw.uniform(count, 0.75, 1.3) for _ in range(3)], dim=1)
    return (mean + draw.uniform(count, 0.0, 1.6) * (images - mean)) * cast


def grey(images: Tensor, draw: Draw) -> Tensor:
    """No colour at all."""
    del draw
    return images.mean(dim=1, keepdim=True).expand_as(images)


def inverted(images: Tensor, draw: Draw) -> Tensor:
    """Dark on bright becomes bright on dark, as stained tissue and fluorescence differ."""
    del draw
    return 1 - images


def optical_density_mix(images: Tensor, draw: Draw) -> Tensor:
    """Other stains and filters: the channels' optical densities are mixed and scaled.

    Light that passes tissue falls exponentially with the amount of dye (Beer and Lambert), so a
    different dye is a linear change of the logarithm.
    """
    count = len(images)
    density = -(images.clamp(min=1 / 255)).log()
    mix = torch.eye(3, device=images.device) + 0.15 * draw.normal(count, 3, 3)
    gain = draw.uniform(count, 0.6, 1.5)
    mixed = torch.einsum("bij,bjhw->bihw", mix, density) * gain
    return (-mixed.clamp(min=0)).exp()
