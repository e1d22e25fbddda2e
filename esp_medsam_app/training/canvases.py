"""Training images once decoded: slices on disk, scaled in intensity, read as they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.evaluation.pairs import CasePair, read_pair
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.modalities import Modality

INDEX, PIXELS = "index.json", "pixels.bin"
DEFAULT_LIMIT = 4 * 2**30

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class _Slice:
    """Where a slice lies in the file: `[channels, height, width]`, then its labels."""

    case: int
    channels: int
    height: int
    width: int
    offset: int
    labelled: bool

    @property
    def pixels(self) -> int:
        return self.height * self.width


class CanvasStore:
    """The slices of one modality's training images, 8-bit, memory-mapped from one file.

    Reading a case (decoding, percentiles of a whole volume) costs more than training on it; here
    it is paid once. Slices are kept at the size the network works on where that is smaller than
    their own. Pages that are not in use cost no memory.

    Attributes:
        by_case: slice numbers of each case; those that hold a label, and the others.
        empty: numbers of all slices without a label.
    """

    def __init__(self, path: Path) -> None:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        self._slices = [_Slice(*entry) for entry in index["slices"]]
        self._pixels = np.memmap(path / PIXELS, np.uint8, "r")
        self.by_case: list[tuple[list[int], list[int]]] = [([], []) for _ in range(index["cases"])]
        for number, entry in enumerate(self._slices):
            self.by_case[entry.case][0 if entry.labelled else 1].append(number)
        self.empty = [n for n, entry in enumerate(self._slices) if not entry.labelled]

    @classmethod
    def prepare(
        cls,
        path: Path,
        pairs: Sequence[CasePair],
        modality: Modality,
        *,
        tile: int,
        limit_bytes: int = DEFAULT_LIMIT,
        report: Report = lambda done, total: None,
    ) -> CanvasStore:
        """The store in folder `path`; it is made if it is not there or was made of other cases.

        Args:
            path: a folder of its own.
            pairs: images with label maps.
            modality: its labels, intensities and tiles.
            tile: side of the network's input, pixels.
            limit_bytes: of the file. Each case has an equal share; of a volume that needs more,
                slices at even distances are kept, one at least.
            report: called with cases done and cases in all.

        Raises:
            InputError: a case that cannot be used.
        """
        origin = _origin(pairs, modality, tile, limit_bytes)
        try:
            known = json.loads((path / INDEX).read_text(encoding="utf-8")).get("origin")
        except (OSError, ValueError):
            known = None
        if known != origin:
            path.mkdir(parents=True, exist_ok=True)
            share = limit_bytes // len(pairs)
            slices: list[_Slice] = []
            with written_whole(path / PIXELS) as partial, partial.open("wb") as file:
                for number, pair in enumerate(pairs):
                    image, reference = read_pair(pair, modality)
                    slices += _write_case(file, number, image, reference, modality, tile, share)
                    report(number + 1, len(pairs))
            with written_whole(path / INDEX) as partial:
                index = {
                    "origin": origin,
                    "cases": len(pairs),
                    "slices": [list(entry.__dict__.values()) for entry in slices],
                }
                partial.write_text(json.dumps(index), encoding="utf-8")
        return cls(path)

    def __len__(self) -> int:
        return len(self._slices)

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """A slice: float32 `[3, h, w]` in [0, 1] and its label map uint8 `[h, w]`."""
        entry = self._slices[number]
        middle = entry.offset + entry.channels * entry.pixels
        image = np.array(self._pixels[entry.offset : middle])
        labels = np.array(self._pixels[middle : middle + entry.pixels])
        canvas = torch.from_numpy(image).view(entry.channels, entry.height, entry.width)
        return (
            canvas.expand(3, -1, -1).float() / 255,
            torch.from_numpy(labels).view(entry.height, entry.width),
        )


def _write_case(
    file: BinaryIO,
    number: int,
    image: MedicalImage,
    reference: MedicalImage,
    modality: Modality,
    tile: int,
    share: int,
) -> list[_Slice]:
    view = SliceView.of(image.grid)
    slices = view.slices(image.voxels)
    truth = view.slices(reference.voxels)
    scale = IntensityScale.of(image.voxels, modality.intensity)
    count, height, width = slices.shape[:3]
    tiling = Tiling(height, width, tile, modality.tiles)
    shrink = tiling.canvas[0] < height
    pixels = tiling.canvas[0] * tiling.canvas[1] if shrink else height * width
    channels = 3 if slices.ndim == 4 else 1
    fitting = max(1, min(count, share // ((channels + 1) * pixels)))
    written = []
    for index in np.linspace(0, count - 1, fitting).round().astype(int):
        canvas = scale.apply(slices[index : index + 1])[:, :channels]
        labels = torch.from_numpy(np.ascontiguousarray(truth[index : index + 1]))
        if shrink:
            canvas, labels = tiling.scale(canvas), tiling.scale_labels(labels)
        offset = file.tell()
        file.write((canvas[0] * 255).round().to(torch.uint8).numpy().tobytes())
        file.write(labels[0].to(torch.uint8).numpy().tobytes())
        shape = (int(labels.shape[-2]), int(labels.shape[-1]))
        written.append(_Slice(number, channels, *shape, offset, bool(labels.any())))
    return written


def _origin(pairs: Sequence[CasePair], modality: Modality, tile: int, limit_bytes: int) -> str:
    """What a store is made of, in one word: files with size and time, and the rules."""
    files = [
        [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        for pair in pairs
        for path in (pair.image, pair.label)
    ]
    rules = modality.model_dump(mode="json", include={"labels", "intensity", "tiles"})
    text = json.dumps([files, rules, tile, limit_bytes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
