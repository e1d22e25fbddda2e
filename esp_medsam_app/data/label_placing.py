"""Putting a label map on its image's grid, where it lies there but is stored in another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.image import LPS, Grid

# So far, in voxels, a cropped label map may lie beside the image's grid.
_BESIDE = 0.1


def placed(
    voxels: NDArray[Any], own: Grid, grid: Grid, *, may_be_cropped: bool
) -> tuple[NDArray[Any], Grid]:
    """A label map as its image's grid has it, where there is but one way; else as it is.

    Viewers store the label map of a picture as a volume of one slice. Where a camera's tag swaps
    rows and columns, other programs store it upright. 3D Slicer crops a segmentation to what is
    drawn.

    Args:
        voxels: of the label map.
        own: its grid.
        grid: of its image.
        may_be_cropped: whether a part of the image's grid is meant as a part, not a mistake.

    Returns:
        Voxels and grid: `grid` itself where voxels had to be moved.
    """
    if own.shape == grid.shape:
        return voxels, replace(own, upright=grid.upright)
    flat = _without_single_slice(grid.shape)
    if _without_single_slice(own.shape) == flat:
        kept = Grid(grid.shape, own.affine, own.has_patient_space, upright=grid.upright)
        return voxels.reshape(grid.shape), kept
    upright = (flat[1], flat[0], *flat[2:])
    if grid.upright.swapped and _without_single_slice(own.shape) == upright:
        rows_first = np.swapaxes(voxels.reshape(upright), 0, 1)
        stored = np.swapaxes(grid.upright.undo(rows_first), 0, 1)
        return stored.reshape(grid.shape), grid
    first = _first_voxel(own, grid) if may_be_cropped else None
    if first is None:
        return voxels, own
    whole = np.zeros(_volume(grid.shape), voxels.dtype)
    part = tuple(slice(a, a + n) for a, n in zip(first, _volume(own.shape), strict=True))
    whole[part] = voxels.reshape(_volume(own.shape))
    return whole.reshape(grid.shape), grid


def _first_voxel(own: Grid, grid: Grid) -> tuple[int, ...] | None:
    """Where a part of a grid begins in it; None if it is no part, voxel on voxel."""
    step = np.linalg.inv(_in_viewers(grid)) @ _in_viewers(own)
    shape, whole = np.array(_volume(own.shape)), np.array(_volume(grid.shape))
    first = np.rint(step[:3, 3])
    # a grid of another spacing or direction leaves it at its far end
    beside = np.abs(step[:3, :3] - np.eye(3)) @ (shape - 1) + np.abs(step[:3, 3] - first)
    if beside.max() > _BESIDE or (first < 0).any() or (first + shape > whole).any():
        return None
    return tuple(int(index) for index in first)


def _in_viewers(grid: Grid) -> NDArray[np.float64]:
    """The affine to RAS+; a picture's axes are LPS+ to viewers."""
    return grid.affine if grid.has_patient_space else LPS @ grid.affine


def _volume(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1)[:3]


def _without_single_slice(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1,) else shape
