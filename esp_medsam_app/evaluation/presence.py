"""How sure SPPG has to be that a tile holds the structure, fitted on cases that are not trained on.

Looked at on the network's own grid, tile by tile. The limit is the lowest one at which hardly any
tile without the structure is marked any more, as long as the mean Dice does not suffer. Only slices
of the cases themselves count: a limit against images of other things would be fitted where the
cases are at their clearest, and silence those of another site.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.evaluation.silence import MARKED
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling, decide
from esp_medsam_app.inference.presence import strongest_patch
from esp_medsam_app.modalities import Modality

# The mean Dice may stay so far below the best: the noise of a handful of cases.
TOLERANCE = 0.003
_ABOVE = 1e-4


@dataclass(frozen=True)
class SeenTile:
    """What was found on a tile.

    Attributes:
        case: of which image it is.
        strongest: the largest logit of SPPG's map.
        marked: share of its pixels that are marked.
        overlap: pixels that are rightly marked, by label.
        found: pixels that are marked, by label.
        there: pixels of the reference, by label.
    """

    case: int
    strongest: float
    marked: float
    overlap: NDArray[np.int64]
    found: NDArray[np.int64]
    there: NDArray[np.int64]

    @property
    def empty(self) -> bool:
        """Whether the structure is absent."""
        return not self.there.any()


@dataclass(frozen=True)
class Calibration:
    """A limit and what it does to the tiles that it was fitted on.

    Attributes:
        least: the logit that a patch has to reach; none: no limit is better.
        dice: mean Dice of the cases without it, and with it.
        marked: share of the tiles without the structure that were marked, likewise.
        lost: share of the tiles with the structure that are held empty.
    """

    least: float | None
    dice: tuple[float, float]
    marked: tuple[float, float]
    lost: float


def seen_tiles(
    segmenter: Segmenter,
    modality: Modality,
    image: MedicalImage,
    labels: NDArray[np.generic],
    case: int,
) -> Iterator[SeenTile]:
    """What the network finds on the tiles of an image, before any limit.

    Args:
        segmenter: with the modality, of a design with SPPG.
        modality: its labels and rules.
        image: picture or volume.
        labels: its reference, of the image's shape.
        case: a number for it.
    """
    view = SliceView.of(image.grid)
    slices = view.slices(image.voxels)
    tiling = Tiling(
        slices.shape[1], slices.shape[2], segmenter.input_size(modality.name), modality.tiles
    )
    scale = IntensityScale.of(image.voxels, modality.intensity)
    reference = torch.from_numpy(np.ascontiguousarray(view.slices(labels)).astype(np.uint8))
    pairs = (
        (tiling.cut(canvas, origin), tiling.cut(there, origin))
        for canvas, there in (
            (
                tiling.scale(scale.apply(slices[index : index + 1]))[0],
                tiling.scale_labels(reference[index : index + 1])[0],
            )
            for index in range(len(slices))
        )
        for origin in tiling.origins
    )
    values = torch.tensor(list(modality.labels.values()))
    while batch := list(islice(pairs, segmenter.batch_size)):
        seen = segmenter.look_through(torch.stack([tile for tile, _ in batch]), modality)
        strongest = strongest_patch(seen)
        assert strongest is not None
        for logits, patch, (_, there) in zip(
            seen.mask_logits.float().cpu(), strongest.tolist(), batch, strict=True
        ):
            yield _seen(decide(logits), there, values, case, patch)


def _seen(labels: Tensor, there: Tensor, values: Tensor, case: int, strongest: float) -> SeenTile:
    found, right = (
        labels == torch.arange(1, len(values) + 1)[:, None, None],
        there == values[:, None, None],
    )
    return SeenTile(
        case,
        strongest,
        float((labels > 0).float().mean()),
        (found & right).sum((1, 2)).numpy(),
        found.sum((1, 2)).numpy(),
        right.sum((1, 2)).numpy(),
    )


def calibrate(tiles: Sequence[SeenTile], most_marked: float) -> Calibration:
    """The lowest limit at which at most so many tiles without the structure are marked.

    Limits that cost more than `TOLERANCE` of the mean Dice, against none and against the best, do
    not count; if none that counts is enough, it is the one that leaves the fewest marked.

    Args:
        tiles: of all cases.
        most_marked: share of the tiles without the structure.
    """
    effect = _Effect(tiles)
    before = effect.of(-math.inf)
    # just above each tile that should be empty
    limits = sorted({tile.strongest + _ABOVE for tile in tiles if tile.empty and tile.marked})
    found = [(limit, effect.of(limit)) for limit in limits]
    best = max([before.dice, *(figures.dice for _, figures in found)])
    least, chosen = None, before
    for limit, figures in found:
        if chosen.marked <= most_marked and chosen.dice >= best - TOLERANCE:
            break
        if figures.dice >= best - TOLERANCE and figures.marked < chosen.marked:
            least, chosen = limit, figures
    return Calibration(
        least, (before.dice, chosen.dice), (before.marked, chosen.marked), chosen.lost
    )


class _Figures(NamedTuple):
    dice: float
    marked: float
    lost: float


class _Effect:
    """What a limit does to tiles."""

    def __init__(self, tiles: Sequence[SeenTile]) -> None:
        self.case = np.array([tile.case for tile in tiles])
        self.strongest = np.array([tile.strongest for tile in tiles])
        self.marked = np.array([tile.marked > MARKED for tile in tiles])
        self.empty = np.array([tile.empty for tile in tiles])
        self.overlap, self.found, self.there = (
            np.stack([getattr(tile, name) for tile in tiles])
            for name in ("overlap", "found", "there")
        )

    def of(self, least: float) -> _Figures:
        """Mean Dice of the cases, share of empty tiles marked, share of the others held empty."""
        kept = self.strongest >= least
        dice = []
        for case in np.unique(self.case):
            mine = self.case == case
            overlap = self.overlap[mine & kept].sum(0)
            total = self.found[mine & kept].sum(0) + self.there[mine].sum(0)
            dice.append(np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0).mean())
        marked = (self.marked & kept)[self.empty].mean() if self.empty.any() else 0.0
        lost = (~kept)[~self.empty].mean() if not self.empty.all() else 0.0
        return _Figures(float(np.mean(dice)), float(marked), float(lost))
