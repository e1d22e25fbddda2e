"""Light and windows: uneven illumination and coil fields, and CT windows of other widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.training.augmentation.draw import Draw

# Sides of the map on which the body is found in a CT slice, and of the gaps that are closed in it.
_BODY_SIDE, _BODY_GAP = 64, 9
_AIR = 0.05


def uneven_light(images: Tensor, draw: Draw) -> Tensor:
    """A smooth field over the image: uneven light, an MR coil's bias, attenuation of ultrasound."""
    count, _, height, width = images.shape
    y = torch.linspace(-1, 1, height, device=images.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width, device=images.device).view(1, 1, 1, -1)
    terms = (x, y, x * y, x * x - 1 / 3, y * y - 1 / 3, x * x * x, y * y * y)
    field = sum(draw.uniform(count, -0.4, 0.4) * term for term in terms)
    return images * torch.as_tensor(field).clamp(-1.2, 1.2).exp()


def other_window(images: Tensor, draw: Draw) -> Tensor:
    """The same slice in another CT window, from half of the present width to three times it.

    A wider window lifts what was black within the body to grey; air around it stays black.
    """
    count = len(images)
    low = draw.uniform(count, -0.8, 0.3)
    high = draw.uniform(count, 0.7, 1.8)
    shown = (images - low) / (high - low)
    return torch.where((low < 0) & ~inside_body(images), images, shown)


def inside_body(images: Tensor) -> Tensor:
    """Which pixels of CT slices `[B, 3, S, S]` belong to the body: bool `[B, 1, S, S]`.

    The body is what is brighter than air, with gaps closed; it is found on a coarse map.
    """
    bright = (images.mean(dim=1, keepdim=True) > _AIR).float()
    coarse = F.adaptive_max_pool2d(bright, _BODY_SIDE)
    grown = F.max_pool2d(coarse, _BODY_GAP, stride=1, padding=_BODY_GAP // 2)
    closed = -F.max_pool2d(-grown, _BODY_GAP, stride=1, padding=_BODY_GAP // 2)
    return F.interpolate(closed, size=images.shape[-2:], mode="nearest") > 0.5
