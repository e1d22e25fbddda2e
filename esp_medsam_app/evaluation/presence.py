"""How sure SPPG has to be that a tile holds the structure, fitted on cases that are not trained on.

Looked at on the network's own grid, tile by tile. The limit is the lowest one at which hardly any
tile without the structure is marked any more, as long as the mean Dice does not suffer.
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
from esp_medsam_app.inference.assessment import spread
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
        case: of which image it is; none for images of other things.
        strongest: the largest logit of SPPG's map.
        marked: share of its pixels that are marked.
        overlap: pixels that are rightly marked, by label.
        found: pixels that are marked, by label.
        there: pixels of the reference, by label.
    """

    case: int | None
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
        marked: share of the tiles without the structure that were marked, likewise. Of tiles of
            the cases and of images of other things, the larger one.
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
    labels: NDArray[np.generic] | None,
    case: int | None = None,
    most_slices: int | None = None,
) -> Iterator[SeenTile]:
    """What the network finds on the tiles of an image, before any limit.

    Args:
        segmenter: with the modality, of a design with SPPG.
        modality: its labels and rules.
        image: picture or volume.
        labels: its reference, of the image's shape; none: it holds nothing of the modality.
        case: a number for it.
        most_slices: so many slices, evenly spread; all by default.
    """
    view = SliceView.of(image.grid)
    slices = view.slices(image.voxels)
    chosen = spread(len(slices), most_slices or len(slices))
    tiling = Tiling(
        slices.shape[1], slices.shape[2], segmenter.bundle.description.input_size, modality.tiles
    )
    scale = IntensityScale.of(image.voxels, modality.intensity)
    reference = np.zeros(slices.shape[:3], np.uint8)
    if labels is not None:
        reference = np.ascontiguousarray(view.slices(labels)).astype(np.uint8)
    pairs = (
        (tiling.cut(canvas, origin), tiling.cut(there, origin))
        for canvas, there in (
            (
                tiling.scale(scale.apply(slices[index : index + 1]))[0],
                tiling.scale_labels(torch.from_numpy(reference[index : index + 1]))[0],
            )
            for index in chosen
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


def _seen(
    labels: Tensor, there: Tensor, values: Tensor, case: int | None, strongest: float
) -> SeenTile:
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
        tiles: of cases and of images of other things; at least one of a case.
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
        if figures.dice >= best - TOLERANCE and sum(figures.shares) < sum(chosen.shares):
            least, chosen = limit, figures
    return Calibration(
        least, (before.dice, chosen.dice), (before.marked, chosen.marked), chosen.lost
    )


class _Figures(NamedTuple):
    dice: float
    shares: tuple[float, ...]
    lost: float

    @property
    def marked(self) -> float:
        return max(self.shares, default=0.0)


class _Effect:
    """What a limit does to tiles."""

    def __init__(self, tiles: Sequence[SeenTile]) -> None:
        self.case = np.array([-1 if tile.case is None else tile.case for tile in tiles])
        self.strongest = np.array([tile.strongest for tile in tiles])
        self.marked = np.array([tile.marked > MARKED for tile in tiles])
        self.empty = np.array([tile.empty for tile in tiles])
        self.overlap, self.found, self.there = (
            np.stack([getattr(tile, name) for tile in tiles])
            for name in ("overlap", "found", "there")
        )

    def of(self, least: float) -> _Figures:
        """Mean Dice of the cases, shares of empty tiles marked, share of the others held empty.

        Empty tiles of the cases and of other images are counted apart.
        """
        kept = self.strongest >= least
        dice = []
        for case in np.unique(self.case[self.case >= 0]):
            mine = self.case == case
            overlap = self.overlap[mine & kept].sum(0)
            total = self.found[mine & kept].sum(0) + self.there[mine].sum(0)
            dice.append(np.where(total > 0, 2 * overlap / np.maximum(total, 1), 1.0).mean())
        groups = (self.empty & (self.case >= 0), self.empty & (self.case < 0))
        shares = [float((self.marked & kept)[group].mean()) for group in groups if group.any()]
        lost = (~kept)[~self.empty].mean() if not self.empty.all() else 0.0
        return _Figures(float(np.mean(dice)), tuple(shares), float(lost))
