"""From image to network input and back: intensities, scale, tiles.

One path serves training and inference, so that both see the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Intensity, Tiles

# Below this there is no structure to see and no whole patch to decide on.
SMALLEST_SIDE = 8
# Integer values that are counted at most, and voxels in one go (8 bytes each).
_COUNTED, _AT_ONCE = 2**16, 2**22
# Tiles share at least this share of their side, so that seams are blended.
OVERLAP = 1 / 8
# Tiles of an image are counted as for an input of so many pixels, whatever the network's: with a
# smaller input they cover the same, sampled coarser, and are not more of them.
COUNTED_FOR = 256


@dataclass(frozen=True)
class IntensityScale:
    """Grey values `low` to `high` mapped to 0 to 1, the same for all slices of an image."""

    low: float
    high: float

    @classmethod
    def of(cls, voxels: NDArray[np.generic], intensity: Intensity) -> IntensityScale:
        """Find the scale of an image.

        Args:
            voxels: the whole image, any shape.
            intensity: the modality's rule.

        Raises:
            InputError: voxels are not finite, or all equal: there is nothing to segment.
        """
        low, high = float(voxels.min()), float(voxels.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                "voxels that are no numbers (NaN or infinite)",
                remedy="Replace them, for example by the value of air",
            )
        if not low < high:
            raise InputError(
                f"all voxels have the value {low:g}: there is nothing to segment",
                remedy="Check the export of the image",
            )
        if intensity.kind == "window":
            if voxels.dtype == np.uint8:
                return cls(0.0, 255.0)
            return cls(intensity.low, intensity.high)
        if intensity.kind == "percentiles":
            least, most = _percentiles(voxels, (low, high), (intensity.low, intensity.high))
            # a few bright voxels on a constant ground leave nothing between the percentiles
            if least < most:
                low, high = float(least), float(most)
        return cls(low, high)

    def apply(self, slices: NDArray[np.generic]) -> Tensor:
        """`[S, H, W]` grey or `[S, H, W, 3]` RGB to float32 `[S, 3, H, W]` in [0, 1]."""
        scaled = (slices.astype(np.float32) - self.low) / (self.high - self.low)
        unit = torch.from_numpy(np.clip(scaled, 0.0, 1.0))
        if unit.ndim == 3:
            return unit.unsqueeze(1).expand(-1, 3, -1, -1)
        return unit.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Tiling:
    """How slices of one size are scaled and cut into square network inputs, and put together again.

    The slice is scaled so that a whole number of tiles covers its longest side; a slice that is
    shorter than a tile is padded with zeros at the right and below, as LiteMedSAM does.

    Attributes:
        height: of the slice, pixels.
        width: of the slice, pixels.
        tile: side of the network's input, pixels.
        tiles: the modality's rule.
        counted_for: side of the input for which that rule counts tiles, pixels.
    """

    height: int
    width: int
    tile: int
    tiles: Tiles
    counted_for: int = COUNTED_FOR

    def __post_init__(self) -> None:
        if min(self.height, self.width) < SMALLEST_SIDE:
            raise InputError(
                f"slices of {self.width} x {self.height} pixels are too small",
                remedy=f"At least {SMALLEST_SIDE} pixels are needed along each side",
            )

    @cached_property
    def step(self) -> int:
        """Largest distance of two tiles' origins, pixels of the canvas."""
        return _step(self.tile)

    @cached_property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the scaled slice."""
        longest = max(self.height, self.width)
        count = round((longest - self.counted_for) / _step(self.counted_for)) + 1
        count = min(max(count, self.tiles.least), self.tiles.most)
        working = self.tile + (count - 1) * self.step
        return (
            max(1, round(self.height * working / longest)),
            max(1, round(self.width * working / longest)),
        )

    @cached_property
    def origins(self) -> list[tuple[int, int]]:
        """Top and left of each tile on the canvas."""
        rows, columns = (self._along(extent) for extent in self.canvas)
        return [(top, left) for top in rows for left in columns]

    def _along(self, extent: int) -> list[int]:
        if extent <= self.tile:
            return [0]
        count = -(-(extent - self.tile) // self.step) + 1
        return [round(i * (extent - self.tile) / (count - 1)) for i in range(count)]

    def scale(self, slices: Tensor) -> Tensor:
        """`[S, C, H, W]` float to the canvas `[S, C, h, w]`, bilinear, antialiased if shrinking."""
        return _resize(slices, self.canvas)

    def scale_labels(self, labels: Tensor) -> Tensor:
        """Label maps `[S, H, W]` to the canvas, nearest."""
        scaled = F.interpolate(labels.unsqueeze(1).float(), size=self.canvas, mode="nearest-exact")
        return scaled.squeeze(1).to(labels.dtype)

    def cut(self, canvas: Tensor, origin: tuple[int, int]) -> Tensor:
        """One tile `[..., tile, tile]` of a canvas `[..., h, w]`, zero-padded where it ends."""
        top, left = origin
        piece = canvas[..., top : top + self.tile, left : left + self.tile]
        missing = (0, self.tile - piece.shape[-1], 0, self.tile - piece.shape[-2])
        return F.pad(piece, missing) if any(missing) else piece

    def join(self, tiles: Tensor) -> Tensor:
        """Logits of all tiles of one slice `[tiles, Q, tile, tile]` to `[Q, H, W]`.

        Where tiles overlap, the one whose middle is nearer weighs more.
        """
        height, width = self.canvas
        if len(self.origins) == 1:
            joined = tiles[0, :, :height, :width]
        else:
            ramp = torch.arange(1, self.tile + 1, device=tiles.device, dtype=tiles.dtype)
            ramp = torch.minimum(ramp, ramp.flip(0)).clamp(max=self.tile * OVERLAP)
            weight = ramp[:, None] * ramp[None, :]
            total = tiles.new_zeros(tiles.shape[1], height, width)
            weights = tiles.new_zeros(height, width)
            for tile, (top, left) in zip(tiles, self.origins, strict=True):
                rows, columns = min(self.tile, height - top), min(self.tile, width - left)
                part = weight[:rows, :columns]
                total[:, top : top + rows, left : left + columns] += tile[:, :rows, :columns] * part
                weights[top : top + rows, left : left + columns] += part
            joined = total / weights
        return _resize(joined.unsqueeze(0), (self.height, self.width))[0]


def _step(side: int) -> int:
    """From tile to tile, for an input of so many pixels."""
    return round(side * (1 - OVERLAP))


def decide(logits: Tensor) -> Tensor:
    """Logits `[Q, H, W]` of labels 1..Q to a label map uint8 `[H, W]`.

    A pixel takes the label of the largest logit, background where none is above zero.
    """
    best, index = logits.max(dim=0)
    return torch.where(best > 0, index + 1, 0).to(torch.uint8)


def _percentiles(
    voxels: NDArray[np.generic], bounds: tuple[float, float], wanted: tuple[float, float]
) -> tuple[float, float]:
    """Two percentiles of an image's values, which lie within `bounds`.

    Integers of a moderate range are counted, which takes a tenth of the time of sorting them.
    """
    least = int(bounds[0])
    values = int(bounds[1]) - least + 1
    if not np.issubdtype(voxels.dtype, np.integer) or values > _COUNTED:
        low, high = np.percentile(voxels.astype(np.float32), wanted)
        return float(low), float(high)
    counts = np.zeros(values, np.int64)
    # in the order in which they lie in memory
    for part in np.array_split(voxels.ravel(order="K"), 1 + voxels.size // _AT_ONCE):
        counts += np.bincount(part.astype(np.int64) - least, minlength=values)
    ranks = np.asarray(wanted) / 100 * (voxels.size - 1)
    below = np.floor(ranks)
    up_to = np.cumsum(counts)
    at, after = (
        np.searchsorted(up_to, np.minimum(rank, voxels.size - 1), side="right") + least
        for rank in (below, below + 1)
    )
    low, high = at + (ranks - below) * (after - at)
    return float(low), float(high)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
