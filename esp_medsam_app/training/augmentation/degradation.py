"""What acquisition and storage cost: blur, noise, low resolution, ringing, compression."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.training.augmentation.draw import Draw

# Quantisation of luminance in JPEG at quality 50 (ITU-T T.81, table K.1).
_QUANTISATION = torch.tensor(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=torch.float32,
)
_BLOCK = 8


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation `[B, 1, 1, 1]` for each image, pixels."""
    radius = max(1, math.ceil(3 * float(sigma.max())))
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (places / sigma.view(-1, 1)) ** 2).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    count, channels, height, width = images.shape
    kernel = kernel.repeat_interleave(channels, 0)
    groups = count * channels
    flat = F.pad(images, (radius,) * 4, mode="replicate").reshape(
        1, groups, *_grown(images, radius)
    )
    flat = F.conv2d(flat, kernel.view(groups, 1, -1, 1), groups=groups)
    flat = F.conv2d(flat, kernel.view(groups, 1, 1, -1), groups=groups)
    return flat.view(count, channels, height, width)


def _grown(images: Tensor, radius: int) -> tuple[int, int]:
    return images.shape[-2] + 2 * radius, images.shape[-1] + 2 * radius


def speckle(images: Tensor, draw: Draw) -> Tensor:
    """Multiplicative noise of ultrasound with a grain of one to four pixels."""
    count, _, height, width = images.shape
    grain = draw.integer(1, 4)
    coarse = (count, 1, -(-height // grain), -(-width // grain))
    # the length of a vector of two normal numbers: a Rayleigh distribution
    noise = (draw.normal(*coarse) ** 2 + draw.normal(*coarse) ** 2).sqrt() / math.sqrt(math.pi / 2)
    noise = F.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)
    return images * (1 + draw.uniform(count, 0.15, 0.6) * (noise - 1))


def low_resolution(images: Tensor, draw: Draw) -> Tensor:
    """Sampled coarser and enlarged again."""
    size = images.shape[-2:]
    results = []
    for image, factor in zip(images, draw.floats(len(images), 0.3, 0.9), strict=True):
        small = [max(8, round(extent * factor)) for extent in size]
        coarse = F.interpolate(
            image[None], small, mode="bilinear", align_corners=False, antialias=True
        )
        results.append(F.interpolate(coarse, size, mode="bilinear", align_corners=False))
    return torch.cat(results)


def ringing(images: Tensor, draw: Draw) -> Tensor:
    """Truncated k-space of MR: high frequencies are missing, edges ring."""
    count, _, height, width = images.shape
    rows = torch.fft.fftfreq(height, device=images.device).view(-1, 1)
    columns = torch.fft.rfftfreq(width, device=images.device).view(1, -1)
    distance = (rows**2 + columns**2).sqrt()
    kept = distance <= draw.uniform(count, 0.15, 0.45)
    return torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(height, width))


def block_compression(images: Tensor, draw: Draw) -> Tensor:
    """The loss of JPEG: the discrete cosine transform of blocks of 8 x 8 pixels is rounded.

    Raises:
        ValueError: the side is not a multiple of eight.
    """
    count, channels, height, width = images.shape
    if height % _BLOCK or width % _BLOCK:
        raise ValueError(f"{height} x {width} pixels are not whole blocks of {_BLOCK}")
    basis = _cosines(images.device)
    steps = (_QUANTISATION.to(images.device) / 255).view(1, 1, _BLOCK, _BLOCK)
    # 1 is quality 50; larger steps lose more
    strength = draw.uniform(count, 0.2, 2.5).view(count, 1, 1, 1)
    blocks = images.reshape(count, channels, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    blocks = blocks.permute(0, 1, 2, 4, 3, 5).reshape(count, -1, _BLOCK, _BLOCK)
    frequencies = basis @ blocks @ basis.T
    frequencies = (frequencies / (steps * strength)).round() * (steps * strength)
    blocks = (basis.T @ frequencies @ basis).view(
        count, channels, height // _BLOCK, width // _BLOCK, _BLOCK, _BLOCK
    )
    return blocks.permute(0, 1, 2, 4, 3, 5).reshape(images.shape)


def _cosines(device: torch.device) -> Tensor:
    """The orthonormal cosine transform of eight values, as a matrix."""
    order = torch.arange(_BLOCK, device=device, dtype=torch.float32)
    matrix = torch.cos(math.pi / _BLOCK * (order[None] + 0.5) * order[:, None])
    matrix = matrix * math.sqrt(2 / _BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix
