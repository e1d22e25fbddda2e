"""Where DICOM frames lie, and how they stack to a volume (PS3.3 C.7.6.2 and C.7.6.16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from esp_medsam_app.data.dicom_pixels import functional_group
from esp_medsam_app.data.image import LPS, Grid
from esp_medsam_app.errors import InputError

# Positions are written with few digits: this much rounding is none, in mm.
TOLERANCE = 0.02
# Directions are too: within a slice of 500 mm this much turning is half a millimetre.
PARALLEL = 1e-3
# Slices whose distances differ by more than this share are not evenly spaced.
UNEVEN = 0.05
_OF_ONE_FILE = (
    "A multi-frame image is read as one volume: have it stored as single slices, each volume a "
    "series of its own"
)


@dataclass(frozen=True, eq=False)
class Frame:
    """Plane of a frame, in DICOM's patient coordinates (LPS+, mm).

    Attributes:
        position: centre of the first pixel.
        along_row: direction in which the column index rises.
        along_column: direction in which the row index rises.
        spacing: distance of rows and of columns.
        has_spacing: whether it is known; else it is one.
        thickness: of the slice, or the distance to the next.
        path: the file.
        number: of the frame in a multi-frame image, from 1; 0 for a single image.
    """

    position: NDArray[np.float64] | None
    along_row: NDArray[np.float64] | None
    along_column: NDArray[np.float64] | None
    spacing: tuple[float, float]
    thickness: float
    path: Path
    number: int = 0
    has_spacing: bool = True

    @property
    def name(self) -> str:
        """For messages."""
        return f"frame {self.number} of {self.path.name}" if self.number else self.path.name

    @property
    def has_position(self) -> bool:
        """Whether the frame says where it lies in the patient."""
        return self.position is not None and self.along_row is not None

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit normal of the plane."""
        assert self.along_row is not None
        assert self.along_column is not None
        return np.cross(self.along_row, self.along_column)

    @classmethod
    def all_of(cls, dataset: Dataset, path: Path) -> list[Frame]:
        """The planes of all frames of an image.

        Raises:
            InputError: an orientation that is none.
        """
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        return [cls._of(dataset, index, count, path) for index in range(count)]

    @classmethod
    def _of(cls, dataset: Dataset, index: int, count: int, path: Path) -> Frame:
        places = functional_group(dataset, index, "PlanePositionSequence")
        turns = functional_group(dataset, index, "PlaneOrientationSequence")
        measures = functional_group(dataset, index, "PixelMeasuresSequence") or dataset
        # a classic multi-frame image has one position for all of its frames: it is a film
        single = dataset if count == 1 else Dataset()
        position = (places or single).get("ImagePositionPatient")
        orientation = (turns or (single if places is None else dataset)).get(
            "ImageOrientationPatient"
        )
        spacing = measures.get("PixelSpacing")
        if not spacing and not position:
            # on the detector, not in the patient
            spacing = dataset.get("ImagerPixelSpacing") or dataset.get("NominalScannedPixelSpacing")
        thickness = measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1
        rows = columns = None
        if orientation:
            rows = np.array(orientation[:3], float)
            columns = np.array(orientation[3:], float)
            if len(orientation) != 6 or not _is_orthonormal(rows, columns):
                raise InputError(
                    f"its orientation {[float(v) for v in orientation]} is none",
                    path=path,
                    remedy="Export it again",
                )
            # written with few digits: unit length only nearly
            rows, columns = rows / np.linalg.norm(rows), columns / np.linalg.norm(columns)
        return cls(
            position=np.array(position, float) if position else None,
            along_row=rows,
            along_column=columns,
            spacing=(float(spacing[0]), float(spacing[1])) if spacing else (1.0, 1.0),
            thickness=abs(float(thickness)) or 1.0,
            path=path,
            number=index + 1 if count > 1 else 0,
            has_spacing=bool(spacing),
        )


def volume_grid(
    frames: Sequence[Frame], size: tuple[int, ...], path: Path
) -> tuple[list[int], Grid]:
    """Order frames along their normal and find their grid `(columns, rows, frames)`.

    A tilted gantry shifts each slice within its plane; the affine holds that shear exactly.

    Args:
        frames: in any order, all with a position.
        size: rows and columns.
        path: for messages.

    Raises:
        InputError: planes that are not parallel, positions that are doubled, uneven or not on a
            line.
    """
    first = frames[0]
    normal = first.normal
    blind = next((frame for frame in frames if not frame.has_spacing), None)
    if blind is not None:
        raise InputError(
            f"its pixels have no size: {blind.name} has no PixelSpacing, so that nothing can be "
            "placed in the patient",
            path=path,
            remedy="Export the series again from the scanner or the PACS, with PixelSpacing",
        )
    for frame in frames:
        assert frame.along_row is not None
        assert first.along_row is not None
        turned = max(
            np.abs(frame.normal - normal).max(), np.abs(frame.along_row - first.along_row).max()
        )
        if turned > PARALLEL:
            raise InputError(
                "slices of different orientation: not one volume",
                path=path,
                remedy=_remedy(frames, "Take localizers and other images out of the folder"),
            )
        if not np.allclose(frame.spacing, first.spacing, rtol=1e-3):
            raise InputError(
                f"slices of different pixel spacing ({first.spacing} and {frame.spacing} mm)",
                path=path,
                remedy=_remedy(frames, "Take localizers and other images out of the folder"),
            )
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    order = [int(index) for index in np.argsort(along, kind="stable")]
    step = _step(positions[order], along[order], [frames[index] for index in order], path)
    if step is None:
        step = normal * first.thickness
    assert first.along_row is not None
    assert first.along_column is not None
    affine = np.eye(4)
    affine[:3, 0] = first.along_row * first.spacing[1]
    affine[:3, 1] = first.along_column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    grid = Grid(
        shape=(int(size[1]), int(size[0]), len(frames)),
        affine=LPS @ affine,
        has_patient_space=True,
    )
    return order, grid


def picture_grid(frame: Frame, count: int, size: tuple[int, ...]) -> Grid:
    """Grid of frames that do not say where the patient lies: an X-ray, a photograph, a film.

    It keeps the distance of pixels, so that sizes in mm are right; several frames count along the
    third index. Axes are those of the picture, x to its right and y down, from the first pixel.
    """
    spacing = [frame.spacing[1], frame.spacing[0], frame.thickness]
    if min(spacing) <= 0:
        spacing = [1.0, 1.0, 1.0]
    shape = (int(size[1]), int(size[0])) + ((count,) if count > 1 else ())
    return Grid(shape=shape, affine=np.diag([*spacing, 1.0]), has_patient_space=False)


def _step(
    positions: NDArray[np.float64], along: NDArray[np.float64], frames: Sequence[Frame], path: Path
) -> NDArray[np.float64] | None:
    """From slice to slice, mm; None for a single slice."""
    if len(positions) == 1:
        return None
    gaps = np.diff(along)
    if gaps.min() < TOLERANCE:
        where = int(gaps.argmin())
        raise InputError(
            f"two slices at the same place ({frames[where].name} and {frames[where + 1].name}): "
            "several phases or copies",
            path=path,
            remedy=_remedy(frames, "Put each phase into a folder of its own"),
        )
    typical = float(np.median(gaps))
    worst = int(np.abs(gaps - typical).argmax())
    if abs(gaps[worst] - typical) > max(TOLERANCE, UNEVEN * typical):
        missing = round(gaps[worst] / typical) - 1
        raise InputError(
            f"slices are {typical:.3f} mm apart, but {gaps[worst]:.3f} mm between "
            f"{frames[worst].name} and {frames[worst + 1].name}"
            + (f": {missing} missing" if missing > 0 else ""),
            path=path,
            remedy=_remedy(frames, "Copy the whole series again"),
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    straight = positions[0] + np.arange(len(positions))[:, None] * step
    apart = float(np.linalg.norm(positions - straight, axis=1).max())
    if apart > max(0.1, UNEVEN * typical):
        raise InputError(
            f"slices do not lie on a line (up to {apart:.2f} mm beside it)",
            path=path,
            remedy="Export the series again, without reformatted images",
        )
    return step


def _remedy(frames: Sequence[Frame], of_single_slices: str) -> str:
    return _OF_ONE_FILE if any(frame.number for frame in frames) else of_single_slices


def _is_orthonormal(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> bool:
    unit = np.allclose([rows @ rows, columns @ columns], 1, atol=1e-3)
    return bool(unit and abs(rows @ columns) < 1e-3)
