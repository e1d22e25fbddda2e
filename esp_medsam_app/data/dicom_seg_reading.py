"""DICOM segmentations as label maps on the grid of their image, whoever wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from esp_medsam_app.data.admission import BYTES_A_BYTE, LEAST
from esp_medsam_app.data.dicom_bytes import read_dataset
from esp_medsam_app.data.dicom_pixels import functional_group
from esp_medsam_app.data.dicom_syntaxes import is_encapsulated
from esp_medsam_app.data.image import LPS, Grid
from esp_medsam_app.errors import InputError

_REMEDY = "Draw it on the image itself and export it again"
# So far, in voxels, a segmentation may lie beside the image's grid.
_BESIDE = 0.1


@dataclass(frozen=True)
class SegmentationHead:
    """What a segmentation says of itself.

    Attributes:
        instance: its SOP instance UID.
        series: its series.
        study: its study.
        images: series that it refers to.
        instances: images that it refers to.
        names: of its segments, by number.
        created: ContentDate and ContentTime, sortable; may be empty.
        automatic: no person has drawn or corrected any of it.
        drawn: as `names`, of those segments alone that have frames; empty where frames do not tell.
    """

    instance: str
    series: str
    study: str
    images: tuple[str, ...]
    instances: frozenset[str]
    names: Mapping[int, str]
    created: str
    automatic: bool
    drawn: Mapping[int, str] = field(default_factory=dict)


def is_segmentation(dataset: Dataset) -> bool:
    """Whether a data set is a DICOM segmentation."""
    return str(dataset.get("Modality", "")) == "SEG" and "SegmentSequence" in dataset


def read_segmentation_file(path: Path) -> Dataset:
    """A segmentation's data set.

    Raises:
        InputError: damaged, or something else.
    """
    try:
        dataset = read_dataset(path)
        found = is_segmentation(dataset)
    except InputError:
        raise
    except Exception as error:  # pydicom raises whatever its parser meets
        raise InputError(
            f"the file is truncated or no DICOM ({error})", path=path, remedy="Export it again"
        ) from error
    if not found:
        raise InputError("the file is DICOM, but no segmentation", path=path, remedy=_REMEDY)
    return dataset


def head_of(dataset: Dataset) -> SegmentationHead:
    """What a segmentation says of itself, from its data set or its metadata.

    Raises:
        InputError: it is damaged, or lacks what every DICOM instance has.
    """
    try:
        segments = list(dataset.SegmentSequence)
        names = {int(s.SegmentNumber): str(s.get("SegmentLabel") or "") for s in segments}
        framed = _framed(dataset)
        references = dataset.get("ReferencedSeriesSequence") or []
        return SegmentationHead(
            instance=str(dataset.SOPInstanceUID),
            series=str(dataset.SeriesInstanceUID),
            study=str(dataset.StudyInstanceUID),
            images=tuple(str(item.SeriesInstanceUID) for item in references),
            instances=frozenset(
                str(instance.ReferencedSOPInstanceUID)
                for item in references
                for instance in item.get("ReferencedInstanceSequence") or []
            ),
            names=names,
            created=f"{dataset.get('ContentDate') or ''}{dataset.get('ContentTime') or ''}",
            automatic=bool(segments)
            and all(s.get("SegmentAlgorithmType") == "AUTOMATIC" for s in segments),
            drawn={number: name for number, name in names.items() if number in framed},
        )
    except Exception as error:  # pydicom parses a value when it is asked for
        raise InputError(f"the segmentation is incomplete ({error})", remedy=_REMEDY) from error


def _framed(dataset: Dataset) -> set[int]:
    """Numbers of the segments that frames belong to."""
    count = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    groups = (
        functional_group(dataset, index, "SegmentIdentificationSequence") for index in range(count)
    )
    return {int(group.ReferencedSegmentNumber) for group in groups if group is not None}


def labels_on(dataset: Dataset, grid: Grid) -> NDArray[np.integer]:
    """Put a segmentation's frames where they belong on the image's grid.

    Frames may come in any order, be cropped, mirrored or turned by a right angle within the image;
    those that are left out are empty.

    Args:
        dataset: binary, fractional (a half and more counts) or a label map.
        grid: of the image.

    Returns:
        Segment numbers, uint8 or uint16, of the grid's shape.

    Raises:
        InputError: frames beside the grid, segments that overlap, damaged pixels.
    """
    try:
        return _labels_on(dataset, grid)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # values that break the standard turn up anywhere
        raise InputError(
            f"the segmentation is damaged ({error or type(error).__name__})", remedy=_REMEDY
        ) from error


def _labels_on(dataset: Dataset, grid: Grid) -> NDArray[np.integer]:
    numbers = [int(item.SegmentNumber) for item in dataset.SegmentSequence]
    kind = str(dataset.get("SegmentationType", "BINARY"))
    shape = (*grid.shape, 1)[:3]
    result: NDArray[Any] = np.zeros(
        shape, np.uint8 if max(numbers, default=0) <= 255 else np.uint16
    )
    half = int(dataset.get("MaximumFractionalValue", 1) or 1) / 2
    for index, frame in enumerate(_frames(dataset)):
        values: NDArray[Any] = frame
        if kind != "LABELMAP":
            drawn = frame >= half if kind == "FRACTIONAL" else frame > 0
            values = drawn * _number_of(dataset, index)
        rows, columns = np.nonzero(values)
        if len(rows):
            _put(result, _places(dataset, index, frame.shape, grid, rows, columns), values[
                rows, columns
            ])  # fmt: skip
    return np.asarray(result.reshape(grid.shape))


def _frames(dataset: Dataset) -> Iterator[NDArray[np.integer]]:
    """One frame after the other: those of one bit a pixel take eight times their size."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    bits = int(dataset.get("BitsAllocated", 1))
    claimed = math.ceil(count * rows * columns * bits / 8)
    given = len(dataset.PixelData)
    if not is_encapsulated(dataset):
        if given < claimed:
            raise InputError("the segmentation's pixels are truncated", remedy="Export it again")
        if bits == 1:
            packed = np.frombuffer(dataset.PixelData, np.uint8)
            for first in range(0, count * rows * columns, rows * columns):
                last = first + rows * columns
                unpacked = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")
                begin = first % 8
                yield unpacked[begin : begin + rows * columns].reshape(rows, columns)
            return
    elif claimed > max(LEAST // 4, given * BYTES_A_BYTE // 4):
        raise InputError(
            f"the segmentation's pixels cannot hold {count} frames of {columns} x {rows}",
            remedy="Export it again",
        )
    yield from np.asarray(dataset.pixel_array).reshape(count, rows, columns)


def _number_of(dataset: Dataset, index: int) -> int:
    group = functional_group(dataset, index, "SegmentIdentificationSequence")
    if group is None:
        raise InputError(f"frame {index + 1} does not say of which segment it is", remedy=_REMEDY)
    return int(group.ReferencedSegmentNumber)


def _places(
    dataset: Dataset,
    index: int,
    shape: tuple[int, ...],
    grid: Grid,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Indices on the grid, `[pixels, 3]`, of pixels of a frame."""
    extents = (*grid.shape, 1)[:3]
    position = functional_group(dataset, index, "PlanePositionSequence")
    if position is None or not grid.has_patient_space:
        if extents[2] != 1 or shape != (extents[1], extents[0]):
            raise InputError(
                "the segmentation does not say where in the patient it lies", remedy=_REMEDY
            )
        return np.stack([columns, rows, np.zeros_like(rows)], axis=1)
    orientation = functional_group(dataset, index, "PlaneOrientationSequence")
    measures = functional_group(dataset, index, "PixelMeasuresSequence")
    if orientation is None or measures is None:
        raise InputError("the segmentation lacks its orientation or spacing", remedy=_REMEDY)
    to_index = np.linalg.inv(LPS @ grid.affine)
    turned = np.array(orientation.ImageOrientationPatient, float)
    spacing = [float(value) for value in measures.PixelSpacing]
    first = (to_index @ [*map(float, position.ImagePositionPatient), 1])[:3]
    along_row = to_index[:3, :3] @ turned[:3] * spacing[1]
    along_column = to_index[:3, :3] @ turned[3:] * spacing[0]
    exact = first + np.outer(columns, along_row) + np.outer(rows, along_column)
    whole = np.rint(exact)
    beside = float(np.abs(exact - whole).max())
    # a coarser or finer frame would hit whole indices here and there as well
    uneven = max(np.abs(step - np.rint(step)).max() * n for step, n in (
        (along_row, shape[1] - 1), (along_column, shape[0] - 1)
    ))  # fmt: skip
    units = all(np.abs(np.rint(step)).sum() == 1 for step in (along_row, along_column))
    if beside > _BESIDE or uneven > _BESIDE or not units:
        raise InputError(
            f"frame {index + 1} of the segmentation does not lie on the image's voxels",
            remedy=_REMEDY,
        )
    if (whole < 0).any() or (whole >= extents).any():
        raise InputError(
            f"frame {index + 1} of the segmentation reaches beyond the image", remedy=_REMEDY
        )
    return whole.astype(np.intp)


def _put(
    result: NDArray[np.integer], places: NDArray[np.intp], values: NDArray[np.integer]
) -> None:
    where = tuple(places.T)
    before = result[where]
    if ((before != 0) & (before != values)).any():
        raise InputError(
            "segments overlap, and a voxel can have one label only",
            remedy="Remove the overlap and export it again",
        )
    result[where] = values
