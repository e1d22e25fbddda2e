"""Values of label maps: whole numbers that 16 bits hold, whatever type a file keeps them in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.errors import InputError

_LARGEST_LABEL = 65535
# So many voxels are looked at together: what is computed on the way stays small.
CHUNK = 1 << 22


def label_values(voxels: NDArray[Any], path: Path | None) -> NDArray[np.integer]:
    """Labels as uint8, or uint16 where one is above 255.

    Raises:
        InputError: fractions, or numbers that are no labels.
    """
    if voxels.dtype == np.uint8:
        return voxels
    return gathered(slabs(voxels), voxels.shape, path)


def slabs(voxels: NDArray[Any]) -> Iterable[tuple[slice, NDArray[Any]]]:
    """Parts of an array along its last axis, and where they lie."""
    for part in parts_along(voxels.shape):
        yield part, voxels[..., part]


def parts_along(shape: tuple[int, ...]) -> Iterable[slice]:
    """Slices of the last axis with so many voxels as shall be looked at together."""
    plane = max(1, int(np.prod(shape[:-1], dtype=np.int64)))
    step = max(1, CHUNK // plane)
    for start in range(0, shape[-1], step):
        yield slice(start, min(start + step, shape[-1]))


def gathered(
    parts: Iterable[tuple[slice, NDArray[Any]]], shape: tuple[int, ...], path: Path | None
) -> NDArray[np.integer]:
    """Labels from parts along the last axis, so that a wide type is never there as a whole.

    Raises:
        InputError: as `label_values`.
    """
    result: NDArray[Any] = np.zeros(shape, np.uint8, order="F")
    for where, part in parts:
        _check(part, path)
        if result.dtype == np.uint8 and part.size and part.max() > 255:
            result = result.astype(np.uint16, order="K")
        result[..., where] = part
    return result


def _check(part: NDArray[Any], path: Path | None) -> None:
    if part.dtype == np.uint8 or not part.size:
        return
    if part.dtype.kind == "f":
        if not np.isfinite(part).all():
            count = int((~np.isfinite(part)).sum())
            raise InputError(
                f"{count} voxels are no numbers (NaN or infinite)",
                path=path,
                remedy="Replace them, for example by the value of air",
            )
        if not (part == np.rint(part)).all():
            raise InputError(
                "fractions where label numbers are expected",
                path=path,
                remedy="Save the label map with whole numbers, without interpolation",
            )
    low, high = int(part.min()), int(part.max())
    if low < 0 or high > _LARGEST_LABEL:
        raise InputError(
            f"labels between {low} and {high}; 0 to {_LARGEST_LABEL} can be read", path=path
        )


def values_in(labels: NDArray[np.integer]) -> list[int]:
    """The labels in use, background (0) too, in order; `np.unique` would sort every voxel.

    Args:
        labels: of any integer type; uint8 and uint16 are fast.
    """
    if labels.dtype not in (np.uint8, np.uint16):
        return [int(value) for value in np.unique(labels)]
    flat = labels.ravel(order="K")
    counts = np.zeros(np.iinfo(labels.dtype).max + 1, np.int64)
    for start in range(0, flat.size, CHUNK):
        counts += np.bincount(flat[start : start + CHUNK], minlength=counts.size)
    return [int(value) for value in np.flatnonzero(counts)]


def looked_up(table: NDArray[Any], labels: NDArray[np.integer]) -> NDArray[Any]:
    """`table[labels]`, part by part: numpy makes indices of 64 bits of all labels at once."""
    order: Literal["C", "F"] = "F" if labels.flags.f_contiguous else "C"
    flat = labels.ravel(order=order)
    result = np.empty(flat.size, table.dtype)
    for start in range(0, flat.size, CHUNK):
        result[start : start + CHUNK] = table[flat[start : start + CHUNK]]
    return result.reshape(labels.shape, order=order)
