"""Slices as inference sees them, for held-out cases and for trainings without augmentation."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from torch.utils.data import Dataset

from esp_medsam_app.inference.preprocessing import Tiling
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.slice_cache import SliceCache, evenly


class SliceTiles(Dataset[tuple[Tensor, Tensor]]):
    """Tiles of a cache's slices as inference cuts them, unchanged.

    An item is the image float32 `[3, S, S]` in [0, 1] and its label map uint8 `[S, S]`.

    Args:
        cache: the slices.
        modality: of the cache.
        tile: side of the network's input, pixels.
        most: at even distances, where there are more; all by default.
        empty: slices without a label that are taken, at even distances; all by default.
    """

    def __init__(
        self,
        cache: SliceCache,
        modality: Modality,
        tile: int,
        *,
        most: int | None = None,
        empty: int | None = None,
    ) -> None:
        self.cache = cache
        self.modality = modality
        self.tile = tile
        self.most = most
        self.taken = None if empty is None else set(evenly(cache.empty, empty))

    @cached_property
    def _places(self) -> list[tuple[int, int, tuple[int, int]]]:
        """Case, slice and origin of the chosen tiles."""
        found: list[tuple[int, int, tuple[int, int]]] = []
        for case, (labelled, empty) in enumerate(self.cache.by_case):
            wanted = empty if self.taken is None else [n for n in empty if n in self.taken]
            for number in sorted(labelled + wanted):
                found += [(case, number, origin) for origin in self._tiling(number).origins]
        return found if self.most is None else evenly(found, self.most)

    @property
    def cases(self) -> list[int]:
        """Place of each tile's case among the cache's."""
        return [case for case, _, _ in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        _, number, origin = self._places[item]
        image, labels = self.cache.read(number)
        tiling = self._tiling(number)
        canvas = tiling.scale(image.unsqueeze(0))
        truth = tiling.scale_labels(labels.unsqueeze(0))
        return tiling.cut(canvas, origin)[0].clamp(0, 1), tiling.cut(truth, origin)[0]

    def _tiling(self, number: int) -> Tiling:
        height, width = self.cache.extents(number)
        return Tiling(height, width, self.tile, self.modality.tiles)
