"""Cutting a grid into the slices the network sees, and putting them together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.image import Grid

# Slices lie apart by clearly more than their pixels: then they were acquired along that axis.
ANISOTROPIC = 1.2

# Rows and columns of a slice as radiologists look at it, by the patient axis (0 left-right,
# 1 back-front, 2 feet-head) that the slices follow: (patient axis down the rows, sign; patient
# axis along the columns, sign). Sign -1: the index rises against RAS+, as the front of the
# patient lies at the top and the right side at the left.
_RADIOLOGICAL = {
    2: ((1, -1), (0, -1)),
    1: ((2, -1), (0, -1)),
    0: ((2, -1), (1, -1)),
}


@dataclass(frozen=True)
class SliceView:
    """Slices of a grid in radiological orientation, by permuting and flipping axes only.

    So nothing is resampled, and `restore(slices(a))` is `a`, voxel for voxel. A 2D grid and a
    volume of a single slice are that slice. Else slices follow the acquisition axis: the one whose
    spacing is clearly the largest, or the one nearest to the patient's long axis. Pictures are
    shown upright; volumes without patient space (pages, frames) are cut along their last axis.

    Attributes:
        axes: index axis of the grid for slices, rows and columns; slices is -1 in a 2D grid.
        flips: whether slices, rows and columns run against that axis.
        in_plane_spacing: distance of rows and of columns, mm.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    in_plane_spacing: tuple[float, float]

    @classmethod
    def of(cls, grid: Grid) -> SliceView:
        """The view of a grid."""
        spacing = grid.spacing
        flat = len(grid.shape) == 2
        if not grid.has_patient_space:
            turn = grid.upright
            rows, columns = (0, 1) if turn.swapped else (1, 0)
            return cls(
                (-1 if flat else 2, rows, columns),
                (False, turn.rows, turn.columns),
                (spacing[rows], spacing[columns]),
            )
        # here alone: a machine that trains on slices has none of what reads volumes
        from nibabel.orientations import io_orientation

        orientation = io_orientation(grid.affine).astype(int)
        patient_axis = [int(axis) for axis in orientation[:, 0]]
        sign = [int(value) for value in orientation[:, 1]]
        slice_axis = 2 if flat else _slice_axis(grid.shape, spacing, patient_axis)
        chosen, flips = [slice_axis], [sign[slice_axis] < 0]
        for wanted, direction in _RADIOLOGICAL[patient_axis[slice_axis]]:
            axis = patient_axis.index(wanted)
            chosen.append(axis)
            flips.append(sign[axis] != direction)
        return cls(
            (-1 if flat else chosen[0], chosen[1], chosen[2]),
            (not flat and flips[0], flips[1], flips[2]),
            (spacing[chosen[1]], spacing[chosen[2]]),
        )

    def slices(self, array: NDArray[Any]) -> NDArray[Any]:
        """`[*grid.shape]` (or with colours last) to `[S, H, W]` (`[S, H, W, C]`), as a view."""
        if self.axes[0] < 0:
            array = array[np.newaxis]
        return np.flip(np.moveaxis(array, self._sources(), (0, 1, 2)), self._flipped())

    def restore(self, slices: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `slices`."""
        array = np.moveaxis(np.flip(slices, self._flipped()), (0, 1, 2), self._sources())
        return array[0] if self.axes[0] < 0 else array

    def _sources(self) -> tuple[int, int, int]:
        shift = 1 if self.axes[0] < 0 else 0
        return (self.axes[0] + shift, self.axes[1] + shift, self.axes[2] + shift)

    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)


def _slice_axis(shape: tuple[int, ...], spacing: tuple[float, ...], patient_axis: list[int]) -> int:
    if shape.count(1) == 1:
        return shape.index(1)
    order = sorted(range(3), key=lambda axis: spacing[axis])
    if spacing[order[2]] > ANISOTROPIC * spacing[order[1]]:
        return order[2]
    return patient_axis.index(2)
