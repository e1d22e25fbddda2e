"""Pixels of a DICOM image as values: decoded, rescaled, bright where the structure is bright."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import (
    apply_color_lut,
    apply_modality_lut,
    convert_color_space,
)
from pydicom.uid import RLELossless

from esp_medsam_app.data.dicom_jpeg import colours_told_by_the_stream, kind_after_decoding
from esp_medsam_app.data.dicom_syntaxes import decoded_by_itk, is_encapsulated, syntax_of
from esp_medsam_app.errors import InputError

# Values in a unit (HU, Bq/ml, counts) mean the same however they are displayed.
_IN_UNITS = {"CT", "PT", "NM"}
# Even an all black image does not shrink further; smaller claims do no harm.
_LARGEST_RATIO, _LARGEST_IMAGE = 100_000, 2**30


def frames_of(dataset: Dataset, path: Path) -> list[NDArray[Any]]:
    """The frames of an image, each `[rows, columns]` or RGB uint8 `[rows, columns, 3]`.

    Grey values are rescaled (PS3.3 C.11.1, for each frame where functional groups say so), to
    int16 or int32 where that is exact, else float32. MONOCHROME1 is inverted within the range of
    its stored values (C.7.6.3.1.2), so that bright means the same as in MONOCHROME2, except
    where values have a unit (CT, PET, nuclear medicine).

    Raises:
        InputError: pixel data that are missing, truncated or compressed in an unknown way.
    """
    if "PixelData" not in dataset and "FloatPixelData" not in dataset:
        raise InputError(
            "the file holds no pixels", path=path, remedy="Export it with its pixel data"
        )
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    _check_size(dataset, count, path)
    array, kind = _decoded(dataset, path)
    colour = kind == "RGB" or int(dataset.get("SamplesPerPixel", 1)) > 1
    frames = list(array.reshape(-1, *array.shape[-3 if colour else -2 :]))
    if len(frames) != count:
        raise InputError(
            f"{len(frames)} frames where {count} are announced",
            path=path,
            remedy="Export or copy it again",
        )
    if colour:
        return [_as_8_bit(_rgb(frame, kind), dataset) for frame in frames]
    frames = [_stored(frame, dataset) for frame in frames]
    if kind == "PALETTE COLOR":
        return [_palette(frame, dataset) for frame in frames]
    return [_grey(frame, dataset, index, kind, path) for index, frame in enumerate(frames)]


def _decoded(dataset: Dataset, path: Path) -> tuple[NDArray[Any], str]:
    """Stored values, and what the photometric interpretation is after decoding."""
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    try:
        colours = colours_told_by_the_stream(dataset)
        if colours is not None:
            return colours, "RGB"
        if (after := kind_after_decoding(dataset, kind)) != kind:
            # decoders would turn the colours once more
            dataset.PhotometricInterpretation = kind = after
        array = np.asarray(dataset.pixel_array)
        # decoding JPEG may turn the colours
        return array, str(dataset.get("PhotometricInterpretation", kind))
    except Exception as error:  # decoders raise what they like
        array = decoded_by_itk(dataset, path, error)
        return array, kind if array.ndim == 3 else "RGB"


def bytes_a_pixel(headers: Sequence[Dataset], path: Path) -> float:
    """Memory that reading takes for each pixel of a series.

    The stored values, those without unused bits, the rescaled ones and the volume; of a film, all
    of its frames are in work at once, of a series those of one instance.
    """
    first = headers[0]
    samples = int(first.get("SamplesPerPixel", 1) or 1)
    stored = max(1, int(first.get("BitsAllocated", 16) or 16) // 8)
    if samples > 1:
        # colours are converted in float64, frame by frame
        frames = len(headers) * int(first.get("NumberOfFrames", 1) or 1)
        return 3.0 * 2 * stored + 48 / frames
    return 3.0 * stored + (8 if "ModalityLUTSequence" in first or _is_rescaled(first, path) else 0)


def _is_rescaled(dataset: Dataset, path: Path) -> bool:
    return _rescale(dataset, 0, path) != (1.0, 0.0)


def _check_size(dataset: Dataset, count: int, path: Path) -> None:
    """Refuse before memory is taken for pixels that the file cannot hold."""
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    claimed = count * math.prod(int(dataset.get(name, 1) or 1) for name in names) // 8
    if claimed > _LARGEST_IMAGE and claimed > path.stat().st_size * _LARGEST_RATIO:
        raise InputError(
            f"its pixels are truncated or damaged: the file cannot hold {count} frames of "
            f"{dataset.Columns} x {dataset.Rows}",
            path=path,
            remedy="Export or copy it again",
        )


def stacked(frames: Sequence[NDArray[Any]], *, flat: bool) -> NDArray[Any]:
    """Frames of rows and columns to `[x, y, slices(, 3)]`; a `flat` one to `[x, y(, 3)]`."""
    turned = [np.swapaxes(frame, 0, 1) for frame in frames]
    if flat:
        return np.ascontiguousarray(turned[0])
    kind = np.result_type(*turned)
    return np.stack([frame.astype(kind, copy=False) for frame in turned], axis=2)


def _rgb(frame: NDArray[Any], kind: str) -> NDArray[Any]:
    if kind.startswith("YBR_FULL"):
        return convert_color_space(frame, "YBR_FULL", "RGB")
    return frame


def _palette(frame: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    colours = apply_color_lut(frame, dataset)[..., :3]
    # as wide as the entries of the table
    return (colours >> (8 * colours.dtype.itemsize - 8)).astype(np.uint8)


def _as_8_bit(frame: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    if frame.dtype == np.uint8:
        return frame[..., :3]
    stored = int(dataset.get("BitsStored", 16))
    return (frame[..., :3].astype(np.uint32) >> max(0, stored - 8)).astype(np.uint8)


def _stored(frame: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """In native byte order, without what old files keep beside the stored bits (PS3.5 8.1.1)."""
    frame = frame.astype(frame.dtype.newbyteorder("="), copy=False)
    width = 8 * frame.dtype.itemsize
    stored = int(dataset.get("BitsStored", width) or width)
    if frame.dtype.kind not in "iu" or not 1 < stored < width:
        return frame
    high = int(dataset.get("HighBit", stored - 1) or stored - 1)
    # decoders give the values themselves, wherever the file would keep them
    as_in_file = not is_encapsulated(dataset) or syntax_of(dataset) == RLELossless
    above = width - 1 - high if as_in_file and stored <= high + 1 <= width else width - stored
    # shifting back keeps the sign of signed values
    return np.right_shift(np.left_shift(frame, above), width - stored)


def _grey(frame: NDArray[Any], dataset: Dataset, index: int, kind: str, path: Path) -> NDArray[Any]:
    if kind == "MONOCHROME1" and dataset.get("Modality") not in _IN_UNITS:
        frame = _inverted(frame, dataset)
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(frame, dataset)
    slope, intercept = _rescale(dataset, index, path)
    if (slope, intercept) == (1.0, 0.0):
        return frame
    values = frame * slope + intercept
    if slope.is_integer() and intercept.is_integer():
        low, high = values.min(), values.max()
        kinds = (np.int16, np.int32)
        for dtype in kinds:
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return values.astype(dtype)
    return values.astype(np.float32)


def _inverted(frame: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    return (_both_ends(dataset) - frame.astype(np.int32)).astype(frame.dtype)


def _both_ends(dataset: Dataset) -> int:
    """Sum of the lowest and the highest value that can be stored."""
    if int(dataset.get("PixelRepresentation", 0)) == 1:
        return -1
    return 2 ** int(dataset.get("BitsStored", 16)) - 1


def _rescale(dataset: Dataset, index: int, path: Path) -> tuple[float, float]:
    found = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    slope = found.get("RescaleSlope")
    intercept = found.get("RescaleIntercept")
    for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        unusable = value is not None and not math.isfinite(float(value))
        if unusable or (name == "RescaleSlope" and value is not None and float(value) == 0):
            raise InputError(
                f"its {name} is {value}, which leaves nothing of the stored values",
                path=path,
                remedy="Mend the attribute, or export the image again",
            )
    return (
        float(1 if slope is None else slope),
        float(0 if intercept is None else intercept),
    )


def functional_group(dataset: Dataset, index: int, name: str) -> Dataset | None:
    """A functional group's item for a frame, its own or the shared one (PS3.3 C.7.6.16)."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[index]] if index < len(own) else []), shared[:1]:
        for group in groups:
            items = group.get(name)
            if items:
                return items[0]
    return None
