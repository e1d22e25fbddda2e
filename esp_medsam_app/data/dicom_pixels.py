"""Pixels of a DICOM image as values: decoded, rescaled, bright where the structure is bright."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space

from esp_medsam_app.errors import InputError


def frames_of(dataset: Dataset, path: Path) -> list[NDArray[Any]]:
    """The frames of an image, each `[rows, columns]` or RGB uint8 `[rows, columns, 3]`.

    Grey values are rescaled (PS3.3 C.11.1, for each frame where functional groups say so), to
    int16 or int32 where that is exact, else float32. MONOCHROME1 is inverted within the range of
    its stored values (C.7.6.3.1.2), so that bright means the same as in MONOCHROME2.

    Raises:
        InputError: pixel data that are missing, truncated or compressed in an unknown way.
    """
    if "PixelData" not in dataset and "FloatPixelData" not in dataset:
        raise InputError(
            "the file holds no pixels", path=path, remedy="Export it with its pixel data"
        )
    try:
        array = np.asarray(dataset.pixel_array)
    except Exception as error:  # decoders raise what they like
        return _by_itk(dataset, path, error)
    kind = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    colour = int(dataset.get("SamplesPerPixel", 1)) > 1
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    frames = [array] if array.ndim == (3 if colour else 2) else list(array)
    if len(frames) != count:
        raise InputError(f"{len(frames)} frames where {count} are announced", path=path)
    if colour:
        return [_as_8_bit(_rgb(frame, kind), dataset) for frame in frames]
    if kind == "PALETTE COLOR":
        return [_palette(frame, dataset) for frame in frames]
    return [_grey(frame, dataset, index, kind) for index, frame in enumerate(frames)]


def _by_itk(dataset: Dataset, path: Path, reason: Exception) -> list[NDArray[Any]]:
    """What pydicom cannot decode with the libraries at hand (JPEG lossless, JPEG-LS), ITK may.

    Raises:
        InputError: neither can.
    """
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or not syntax.is_compressed:
        raise InputError(
            f"its pixels are truncated or damaged ({reason})",
            path=path,
            remedy="Export or copy it again",
        ) from reason
    refused = InputError(
        f"its pixels are damaged or cannot be decoded (transfer syntax {syntax.name})",
        path=path,
        remedy="Export it uncompressed",
    )
    if "PerFrameFunctionalGroupsSequence" in dataset:
        raise refused from reason
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise refused from error
    # [frames, rows, columns(, colours)], grey values already rescaled, colours already RGB
    frames = list(sitk.GetArrayFromImage(image))
    if image.GetNumberOfComponentsPerPixel() > 1:
        return [_as_8_bit(frame, dataset) for frame in frames]
    if dataset.get("PhotometricInterpretation") != "MONOCHROME1":
        return frames
    slope, intercept = _rescale(dataset, 0)
    both_ends = _both_ends(dataset) * slope + 2 * intercept
    return [both_ends - frame.astype(np.float32) for frame in frames]


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
    return (apply_color_lut(frame, dataset)[..., :3] >> 8).astype(np.uint8)


def _as_8_bit(frame: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    if frame.dtype == np.uint8:
        return frame[..., :3]
    stored = int(dataset.get("BitsStored", 16))
    return (frame[..., :3].astype(np.uint32) >> max(0, stored - 8)).astype(np.uint8)


def _grey(frame: NDArray[Any], dataset: Dataset, index: int, kind: str) -> NDArray[Any]:
    if kind == "MONOCHROME1":
        frame = _inverted(frame, dataset)
    slope, intercept = _rescale(dataset, index)
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


def _rescale(dataset: Dataset, index: int) -> tuple[float, float]:
    found = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    slope = found.get("RescaleSlope")
    intercept = found.get("RescaleIntercept")
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
