"""A CT from file to file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esp_medsam_app.benchmark.timing import Step, times_faster
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.writing import write_image, write_label_map
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.samples.phantoms import abdomen

SIDE, SLICES = 512, 300
# Standard deviation of the noise laid over the phantom, Hounsfield units: what gzip makes of it,
# and how long it takes, is then as of a real CT.
NOISE = 12.0
_THICKNESS = 1.0


@dataclass(frozen=True)
class FileFigures:
    """Of one way to segment the file.

    Attributes:
        name: which way.
        seconds: file to file, of each round.
        reading, segmenting, writing: parts of the fastest round, seconds.
        slices_per_second: of the fastest round.
        times_plain: its rate over that of the first way, the median over the rounds.
    """

    name: str
    seconds: list[float]
    reading: float
    segmenting: float
    writing: float
    slices_per_second: float
    times_plain: float


@dataclass(frozen=True)
class VolumeReport:
    """Of a volume.

    Attributes:
        shape: voxels.
        megabytes: of the file that is read, 10^6 bytes.
        figures: of each way.
    """

    shape: tuple[int, ...]
    megabytes: float
    figures: list[FileFigures]


def write_ct(folder: Path, slices: int = SLICES, side: int = SIDE) -> Path:
    """Write a CT phantom of `side` x `side` x `slices` voxels as .nii.gz; its path."""
    drawn = abdomen(slices=12)
    shape = (side, side, slices)
    indices = [
        np.arange(n) * old // n for n, old in zip(shape, drawn.hounsfield.shape, strict=True)
    ]
    voxels = drawn.hounsfield[np.ix_(*indices)]
    noise = np.random.default_rng(0).normal(0, NOISE, voxels.shape).astype(np.int16)
    affine = np.diag([-400 / side, -400 / side, _THICKNESS, 1.0])
    return write_image(folder / "ct", MedicalImage(voxels + noise, Grid(shape, affine)))


def measure_volume(
    ways: Sequence[tuple[str, Segmenter]],
    modality: str,
    folder: Path,
    *,
    slices: int = SLICES,
    side: int = SIDE,
    rounds: int = 1,
    on_step: Step | None = None,
) -> VolumeReport:
    """Segment a CT file in several ways, in turn.

    Args:
        ways: names and segmenters; the others are compared with the first.
        modality: one of their bundles'.
        folder: for the files, some 200 MB.
        slices: of the volume.
        side: rows and columns.
        rounds: how often.
        on_step: called with the slices done and the slices in all.
    """
    source = write_ct(folder, slices, side)
    total, before = len(ways) * rounds * slices, 0
    parts: dict[str, list[tuple[float, float, float]]] = {name: [] for name, _ in ways}
    for number in range(rounds):
        for name, segmenter in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
            start = before

            def tell(done: int, _: int, start: int = start) -> None:
                if on_step is not None:
                    on_step(start + done, total)

            parts[name].append(
                _file_to_file(source, folder / f"{name}.nii.gz", segmenter, modality, tell)
            )
            before += slices
    plain = [sum(part) for part in parts[ways[0][0]]]
    figures = []
    for name, of_rounds in parts.items():
        seconds = [sum(part) for part in of_rounds]
        best = min(of_rounds, key=sum)
        figures.append(
            FileFigures(name, seconds, *best, slices / sum(best), times_faster(seconds, plain))
        )
    return VolumeReport((side, side, slices), source.stat().st_size / 1e6, figures)


def _file_to_file(
    source: Path,
    target: Path,
    segmenter: Segmenter,
    modality: str,
    on_slice: Callable[[int, int], None],
) -> tuple[float, float, float]:
    start = time.perf_counter()
    image = read_image(source)
    read = time.perf_counter()
    labels = segmenter.segment(image, modality, on_slice=on_slice)
    segmented = time.perf_counter()
    write_label_map(target, labels, image.grid)
    return read - start, segmented - read, time.perf_counter() - segmented
