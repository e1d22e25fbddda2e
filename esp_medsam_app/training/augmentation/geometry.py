"""How a training view is cut from a slice: orientation, zoom, aspect, rotation and position."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.inference.preprocessing import Tiling
from esp_medsam_app.modalities import Modality

# Share of the views that are zoomed, and that are rotated by an angle other than a quarter turn.
ZOOMED, ROTATED = 0.8, 0.6
# Share of the views whose slice lies away from the upper left corner, where inference puts it.
MOVED = 0.3
# Share of the crops that are placed on a labelled pixel, where the slice has any.
ON_STRUCTURE = 0.6
SMALLEST_EXTENT = 8


def cut_view(
    image: Tensor,
    labels: Tensor,
    *,
    extents: tuple[int, int],
    tile: int,
    modality: Modality,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Cut a random square view from a slice, resampled once.

    The slice is scaled as inference scales it for an input of `tile` pixels, times a random zoom
    and aspect. Where it is smaller than the view, zeros fill the rest, on the right and below as
    in inference; where it is larger, the view shows a part of it.

    Args:
        image: float32 `[C, h, w]` in [0, 1].
        labels: uint8 `[h, w]`.
        extents: height and width of the slice before it was stored, which decide how many tiles
            cover it.
        tile: side of the view, pixels.
        modality: its tiles, its augmentation rule and its paired labels.
        rng: source of all random numbers.

    Returns:
        The view `[C, tile, tile]` and its label map uint8 `[tile, tile]`.
    """
    rule = modality.augmentation
    image, labels, extents = _oriented(image, labels, extents, modality, rng)
    canvas = Tiling(*extents, tile, modality.tiles).canvas
    zoom = aspect = 1.0
    if rng.random() < ZOOMED:
        # enlarged more than reduced: what is small already has little left to lose
        zoom = math.exp(rng.uniform(-0.6, 1) * math.log1p(rule.scale))
        aspect = math.exp(rng.uniform(-0.5, 0.5) * math.log1p(rule.aspect))
    height = max(SMALLEST_EXTENT, round(canvas[0] * zoom * aspect))
    width = max(SMALLEST_EXTENT, round(canvas[1] * zoom / aspect))
    if (height, width) != tuple(image.shape[-2:]):
        image = F.interpolate(
            image[None], (height, width), mode="bilinear", align_corners=False, antialias=True
        )[0]
    top, left = _position(labels, (height, width), tile, rng)
    angle = 0.0
    if rule.rotation and rng.random() < ROTATED:
        angle = math.radians(rng.uniform(-rule.rotation, rule.rotation))
    grid = _grid((height, width), (top, left), tile, angle)
    view = F.grid_sample(image[None], grid, mode="bilinear", align_corners=False)[0]
    truth = F.grid_sample(labels[None, None].float(), grid, mode="nearest", align_corners=False)
    return view.clamp(0, 1), truth[0, 0].to(torch.uint8)


def _oriented(
    image: Tensor,
    labels: Tensor,
    extents: tuple[int, int],
    modality: Modality,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """The slice in an orientation that the rule allows; a mirror swaps paired labels."""
    rule = modality.augmentation
    mirrored = False
    for flip, axis in (("up_down", -2), ("left_right", -1)):
        if flip in rule.flips and rng.random() < 0.5:
            image, labels, mirrored = image.flip(axis), labels.flip(axis), not mirrored
    if rule.quarter_turns:
        turns = int(rng.integers(4))
        image, labels = image.rot90(turns, (-2, -1)), labels.rot90(turns, (-2, -1))
        if turns % 2:
            extents = (extents[1], extents[0])
    if mirrored and modality.paired_labels:
        labels = _swapped(labels, modality)
    return image, labels, extents


def _swapped(labels: Tensor, modality: Modality) -> Tensor:
    """Label map with the two labels of each pair exchanged."""
    table = torch.arange(256, dtype=torch.uint8)
    for one, other in modality.paired_labels:
        first, second = modality.labels[one], modality.labels[other]
        table[first], table[second] = second, first
    return table[labels.long()]


def _position(
    labels: Tensor, extents: tuple[int, int], tile: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Top and left of the view in pixels of the scaled slice; negative where the slice is moved."""
    moved = rng.random() < MOVED
    aim: tuple[float, float] | None = None
    if max(extents) > tile and rng.random() < ON_STRUCTURE:
        places = torch.nonzero(labels)
        if len(places):
            row, column = places[int(rng.integers(len(places)))].tolist()
            aim = (
                (row + 0.5) / labels.shape[0] * extents[0],
                (column + 0.5) / labels.shape[1] * extents[1],
            )
    starts = []
    for axis, extent in enumerate(extents):
        free = extent - tile
        if free <= 0:
            starts.append(rng.uniform(free, 0) if moved else 0.0)
        elif aim is not None:
            lowest, highest = max(0.0, aim[axis] - tile), min(float(free), aim[axis])
            starts.append(rng.uniform(min(lowest, highest), max(lowest, highest)))
        else:
            starts.append(rng.uniform(0, free))
    return starts[0], starts[1]


def _grid(extents: tuple[int, int], start: tuple[float, float], tile: int, angle: float) -> Tensor:
    """Where each pixel of the view lies in the scaled slice: `[1, tile, tile, 2]`, -1 to 1."""
    height, width = extents
    # whole pixels keep a view without rotation sharp
    top, left = (round(place) if not angle else place for place in start)
    centre = (top + min(tile, height) / 2, left + min(tile, width) / 2)
    rows = torch.arange(tile, dtype=torch.float32) + (0.5 + top - centre[0])
    columns = torch.arange(tile, dtype=torch.float32) + (0.5 + left - centre[1])
    sine, cosine = math.sin(angle), math.cos(angle)
    y = cosine * rows[:, None] - sine * columns[None, :] + centre[0]
    x = sine * rows[:, None] + cosine * columns[None, :] + centre[1]
    return torch.stack((2 * x / width - 1, 2 * y / height - 1), dim=-1)[None]
