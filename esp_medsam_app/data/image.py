"""What an image is inside this project: voxels and the grid they lie on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.turns import UPRIGHT, Turn

# From the RAS+ of NIfTI to the LPS+ of DICOM and ITK, and back.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie.

    Indices run in the order of NIfTI's i, j, k and ITK's x, y, z; a picture's first index is its
    column, counted from the left, its second the row, counted from the top.

    Attributes:
        shape: 2 or 3 extents.
        affine: float64 `[4, 4]`, from indices to millimetres in the patient, RAS+ (x to the
            right, y to the front, z to the head). The identity for a plain picture.
        has_patient_space: whether the affine says where the patient lies.
        nifti_header: header of the NIfTI file it came from, so that label maps on this grid carry
            the very same qform and sform.
        upright: how a picture, and each frame of a film, is turned to be looked at.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    has_patient_space: bool = True
    nifti_header: Any = field(default=None, repr=False)
    upright: Turn = UPRIGHT

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbours along each index, mm (pixels for a plain picture)."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(length) for length in lengths[: len(self.shape)])


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """Voxels on a grid.

    Attributes:
        voxels: grey `[*grid.shape]`, or RGB `[*grid.shape, 3]` uint8.
        grid: where they lie.
        path: the file or folder they were read from.
        dicom_modality: DICOM's Modality (0008,0060), where the source has it.
        dicom_body_part: DICOM's BodyPartExamined (0018,0015), likewise.
        dicom_description: DICOM's descriptions of study and series, likewise.
        warnings: what a person should know of how the file was read, a sentence each.
    """

    voxels: NDArray[Any]
    grid: Grid
    path: Path | None = None
    dicom_modality: str | None = None
    dicom_body_part: str | None = None
    dicom_description: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = self.grid.shape + ((3,) if self.voxels.ndim > len(self.grid.shape) else ())
        if self.voxels.shape != expected:
            raise ValueError(f"voxels of {self.voxels.shape} on a grid of {self.grid.shape}")

    @property
    def is_rgb(self) -> bool:
        """Whether the voxels are colours."""
        return self.voxels.ndim > len(self.grid.shape)
