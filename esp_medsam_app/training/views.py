"""Training views: network inputs cut from augmented slices, on the very path of inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.inference.preprocessing import Tiling
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.augmentation import IMAGE, LABEL, augmentation
from esp_medsam_app.training.canvases import CanvasStore

# sides of a piece that shows none of the structure, relative to the slice's; each try is smaller
PIECE = (0.3, 0.7)
PIECE_TRIES = 24
PIECE_SHRINKS = 0.95


class TrainingViews(Dataset[tuple[Tensor, Tensor]]):
    """Augmented views of a modality's training slices, as many as one asks for.

    View `i` is a function of the seed and `i` alone: whichever process makes it, and whether or
    not a run was stopped, it is the same. Every case gives as many views as the others: whole
    slices where the modality has one tile, random places where it has more. Half of the slices
    taken from a volume hold a label, the others come as they fall.

    A share of the views shows nothing of the structure, and the model has to stay silent on them:
    slices without it, pieces of slices beside it, images of other modalities.

    Args:
        store: the modality's slices.
        modality: its labels, tiles and augmentation.
        tile: side of the network's input, pixels.
        seed: same seed, same views.
        absent: share of views without the structure.
        foreign: slices of other modalities, none of which holds this one's structure.
    """

    def __init__(
        self,
        store: CanvasStore,
        modality: Modality,
        *,
        tile: int,
        seed: int,
        absent: float = 0.0,
        foreign: Sequence[CanvasStore] = (),
    ) -> None:
        self.store = store
        self.modality = modality
        self.tile = tile
        self.seed = seed
        self.absent = absent
        self.foreign = tuple(foreign)
        self.transform = augmentation(modality.augmentation, tile)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """View `index`, 0 or more: float32 `[3, S, S]` in [0, 1], label map uint8 `[S, S]`."""
        rng = np.random.default_rng([self.seed, index])
        if rng.random() < self.absent:
            image, labels = self._without_structure(index, rng)
        else:
            image, labels = self.store.read(self._slice(index, rng))
        tiling = Tiling(labels.shape[0], labels.shape[1], self.tile, self.modality.tiles)
        self.transform.set_random_state(int(rng.integers(2**31)))
        view = self.transform(
            {
                IMAGE: tiling.scale(image.unsqueeze(0))[0],
                LABEL: tiling.scale_labels(labels.unsqueeze(0)),
            }
        )
        return (
            torch.as_tensor(view[IMAGE]).as_subclass(Tensor).clamp(0, 1),
            torch.as_tensor(view[LABEL]).as_subclass(Tensor)[0].round().to(torch.uint8),
        )

    def case(self, index: int) -> int:
        """Which case view `index` is of; of a view without the structure, if it is of its own."""
        turn, place = divmod(index, len(self.store.by_case))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.store.by_case))
        return int(order[place])

    def _slice(self, index: int, rng: np.random.Generator) -> int:
        labelled, others = self.store.by_case[self.case(index)]
        choice = labelled if labelled and rng.random() < 0.5 else labelled + others
        return int(choice[rng.integers(len(choice))])

    def _without_structure(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        kind = rng.random()
        if self.store.empty and kind < 0.6:
            return self.store.read(int(self.store.empty[rng.integers(len(self.store.empty))]))
        if self.foreign and kind > 0.75:
            store = self.foreign[rng.integers(len(self.foreign))]
            image, labels = store.read(int(rng.integers(len(store))))
            return image, torch.zeros_like(labels)
        image, labels = self.store.read(self._slice(index, rng))
        return _piece_beside(image, labels, rng)


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
