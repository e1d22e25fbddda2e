"""Training images once decoded: slices on disk, scaled in intensity, read as they are needed.

`esp_medsam_app.dataset` writes caches; this module reads them and needs no image library, so that
a machine that only trains needs none.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INDEX, PIXELS = "index.json", "pixels.bin"

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class CachedSlice:
    """Where a slice lies in the file: `[channels, height, width]`, then its labels.

    Attributes:
        case: number of its case.
        channels: 1 (grey) or 3 (RGB).
        height: as stored, pixels.
        width: as stored, pixels.
        offset: first byte in the file.
        labelled: whether a label occurs in it.
        original_height: before it was stored, pixels.
        original_width: before it was stored, pixels.
    """

    case: int
    channels: int
    height: int
    width: int
    offset: int
    labelled: bool
    original_height: int
    original_width: int

    @property
    def pixels(self) -> int:
        """Pixels of one channel."""
        return self.height * self.width

    @property
    def extents(self) -> tuple[int, int]:
        """Height and width before the slice was stored."""
        return self.original_height, self.original_width


class SliceCache:
    """The slices of one modality's images, 8-bit, memory-mapped from one file.

    Reading a case (decoding, percentiles of a whole volume) costs more than training on it; here
    it is paid once. Pages that are not in use cost no memory.

    Args:
        path: folder that `write_index` finished.

    Attributes:
        origin: identifies the files and rules that the cache was made from.
        slices: where each lies.
        by_case: slice numbers of each case; those that hold a label, and the others.
        empty: numbers of all slices without a label.
        case_names: of the cases, in the order of their numbers.
        case_sites: hospital or data set of each case.
        sites: numbers of the cases of each site.
    """

    def __init__(self, path: Path) -> None:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        self.origin: str = index["origin"]
        self.slices = [CachedSlice(*entry) for entry in index["slices"]]
        self._pixels = np.memmap(path / PIXELS, np.uint8, "r")
        self.case_names: list[str] = index["names"]
        self.case_sites: list[str] = index["sites"]
        self.by_case: list[tuple[list[int], list[int]]] = [([], []) for _ in self.case_names]
        for number, entry in enumerate(self.slices):
            self.by_case[entry.case][0 if entry.labelled else 1].append(number)
        self.empty = [n for n, entry in enumerate(self.slices) if not entry.labelled]
        self.sites: dict[str, list[int]] = defaultdict(list)
        for case, site in enumerate(self.case_sites):
            self.sites[site].append(case)

    def __len__(self) -> int:
        return len(self.slices)

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """A slice: float32 `[3, h, w]` in [0, 1] and its label map uint8 `[h, w]`."""
        image, labels = self.stored(number)
        return (
            torch.from_numpy(image).expand(3, -1, -1).float() / 255,
            torch.from_numpy(labels),
        )

    def stored(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A slice as it is on disk: `[channels, h, w]` and its label map `[h, w]`."""
        entry = self.slices[number]
        middle = entry.offset + entry.channels * entry.pixels
        image = np.array(self._pixels[entry.offset : middle])
        labels = np.array(self._pixels[middle : middle + entry.pixels])
        return (
            image.reshape(entry.channels, entry.height, entry.width),
            labels.reshape(entry.height, entry.width),
        )

    def extents(self, number: int) -> tuple[int, int]:
        """Height and width of a slice before it was stored."""
        return self.slices[number].extents


def evenly(things: Sequence[Thing], count: int) -> list[Thing]:
    """At most `count` of some things, at even distances."""
    if len(things) <= count:
        return list(things)
    return [things[round(place)] for place in np.linspace(0, len(things) - 1, count)]


def index_of(
    slices: list[CachedSlice], names: list[str], sites: list[str], origin: str
) -> dict[str, Any]:
    """The content of a cache's index, which is written after all slices.

    Args:
        slices: where each lies.
        names: of the cases.
        sites: of the cases.
        origin: identifies the files and rules that the cache was made from.
    """
    return {
        "origin": origin,
        "names": names,
        "sites": sites,
        "slices": [list(astuple(entry)) for entry in slices],
    }
