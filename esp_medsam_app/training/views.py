"""Training views: network inputs cut from augmented slices, on the very path of inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.augmentation import Appearance, cut_view
from esp_medsam_app.training.slice_cache import SliceCache

# sides of a piece that shows none of the structure, relative to the slice's; each try is smaller
PIECE = (0.3, 0.7)
PIECE_TRIES = 24
PIECE_SHRINKS = 0.95
# Of the views without the structure: slices that lack it, then images of other modalities.
EMPTY_SLICES, FOREIGN = 0.6, 0.25


class Views(Dataset[tuple[Tensor, Tensor]], ABC):
    """Augmented views, as many as one asks for.

    View `i` is a function of the seed and `i` alone: whichever process makes it, and whether or
    not a run was stopped, it is the same.

    Args:
        appearance: how the views may look.
        tile: side of a view where no other is asked for, pixels.
        seed: same seed, same views.
    """

    def __init__(self, appearance: Appearance, *, tile: int, seed: int) -> None:
        self.appearance = appearance
        self.tile = tile
        self.seed = seed

    @abstractmethod
    def cut(self, index: int, tile: int) -> tuple[Tensor, Tensor]:
        """Cut view `index`, 0 or more; its appearance is the image's own.

        Args:
            index: of the view.
            tile: side of the view, pixels.

        Returns:
            Image float32 `[3, tile, tile]` in [0, 1], label map uint8 `[tile, tile]`.
        """

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """View `index` at the usual size: float32 `[3, S, S]` in [0, 1], labels uint8 `[S, S]`."""
        image, labels = self.cut(index, self.tile)
        seed = int(np.random.default_rng([self.seed, index, 3]).integers(2**31))
        images, maps = self.appearance(image[None], labels[None], seed)
        return images[0], maps[0]


class TrainingViews(Views):
    """Views of a modality's training slices.

    A view shows the whole slice where the modality has one tile, a random place where it has more.
    Sites are drawn in proportion to the square root of their number of cases, so that a large one
    does not drown the others; the cases of a single site take turns.

    A share of the views shows nothing of the structure, and the model has to mark nothing on them:
    slices without it, pieces of slices beside it, images of other modalities.

    Args:
        cache: the modality's slices.
        modality: its labels, tiles and augmentation.
        tile: side of a view where no other is asked for, pixels.
        seed: same seed, same views.
        absent: share of views without the structure.
        labelled: share of the other views that are taken from slices with a label; the rest is
            taken from any slice of the case.
        foreign: slices of other modalities, none of which holds this one's structure.
    """

    def __init__(
        self,
        cache: SliceCache,
        modality: Modality,
        *,
        tile: int,
        seed: int,
        absent: float = 0.0,
        labelled: float = 0.5,
        foreign: Sequence[SliceCache] = (),
    ) -> None:
        super().__init__(Appearance(modality.augmentation), tile=tile, seed=seed)
        self.cache = cache
        self.modality = modality
        self.absent = absent
        self.labelled = labelled
        self.foreign = tuple(foreign)
        usable = list(range(len(cache.by_case)))
        if labelled == 1 and len(cache.empty) < len(cache):
            usable = [case for case in usable if cache.by_case[case][0]]
        by_site = [
            [case for case in cases if case in set(usable)] for cases in cache.sites.values()
        ]
        self._sites = [cases for cases in by_site if cases]
        weights = np.sqrt([len(cases) for cases in self._sites])
        self._weights = weights / weights.sum()

    def cut(self, index: int, tile: int) -> tuple[Tensor, Tensor]:
        """Cut view `index`, as `Views.cut`."""
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < self.absent:
            image, labels, extents = self._without_structure(index, rng)
        else:
            number = self._slice(index, rng)
            image, labels = self.cache.read(number)
            extents = self.cache.extents(number)
        return cut_view(image, labels, extents=extents, tile=tile, modality=self.modality, rng=rng)

    def case(self, index: int) -> int:
        """Which case view `index` is of; of a view without the structure, if it is of its own."""
        if len(self._sites) > 1:
            rng = np.random.default_rng([self.seed, index, 2])
            cases = self._sites[int(rng.choice(len(self._sites), p=self._weights))]
            return int(cases[rng.integers(len(cases))])
        cases = self._sites[0]
        turn, place = divmod(index, len(cases))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(cases))
        return int(cases[order[place]])

    def _slice(self, index: int, rng: np.random.Generator) -> int:
        labelled, others = self.cache.by_case[self.case(index)]
        choice = labelled if labelled and rng.random() < self.labelled else labelled + others
        return int(choice[rng.integers(len(choice))])

    def _without_structure(
        self, index: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        kind = rng.random()
        if self.cache.empty and kind < EMPTY_SLICES:
            number = int(self.cache.empty[rng.integers(len(self.cache.empty))])
            return *self.cache.read(number), self.cache.extents(number)
        if self.foreign and kind > 1 - FOREIGN:
            cache = self.foreign[rng.integers(len(self.foreign))]
            number = int(rng.integers(len(cache)))
            image, labels = cache.read(number)
            return image, torch.zeros_like(labels), cache.extents(number)
        number = self._slice(index, rng)
        return *_piece_beside(*self.cache.read(number), rng), self.cache.extents(number)


def _piece_beside(image: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A piece of the slice that holds no label, in its place on black or enlarged to the slice.

    Where the label leaves no room, the slice itself.
    """
    extents = np.array(labels.shape)
    for turn in range(PIECE_TRIES):
        sides = rng.uniform(*PIECE, 2) * PIECE_SHRINKS**turn
        height, width = np.maximum(1, (extents * sides).astype(int))
        top, left = (int(rng.integers(free + 1)) for free in extents - (height, width))
        window = (slice(top, top + height), slice(left, left + width))
        if labels[window].any():
            continue
        piece = image[:, window[0], window[1]]
        if rng.random() < 0.5:
            alone = torch.zeros_like(image)
            alone[:, window[0], window[1]] = piece
        else:
            alone = F.interpolate(
                piece.unsqueeze(0), size=tuple(extents.tolist()), mode="bilinear"
            )[0]
        return alone, torch.zeros_like(labels)
    return image, labels
