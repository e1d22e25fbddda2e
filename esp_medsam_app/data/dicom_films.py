"""Where images lie whose DICOM does not place every frame: X-rays, films, classic stacks.

A classic multi-frame image has one position and orientation for all of its frames (PS3.3 C.7.6.2).
Whether its frames are slices of a volume or moments of a film, other attributes tell, or nothing
does. The grid is the one that ITK, and so 3D Slicer, gives the file; it counts as the patient's
space only where the attributes say how the frames lie in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from esp_medsam_app.data.dicom_geometry import Frame, picture_grid
from esp_medsam_app.data.image import LPS, Grid

# Cross-sections, whose values belong to places in the patient.
_SECTIONS = {"CT", "MR", "PT", "NM"}
# Attributes of frames that follow each other in time (PS3.3 C.7.6.5).
_OF_TIME = ("FrameTime", "FrameTimeVector", "CineRate", "TimeSlotVector", "TimeSliceVector")
# Of a gamma camera's frames: what else than the slice may differ (PS3.3 C.8.4.8).
_OF_NM = (
    "EnergyWindowVector", "DetectorVector", "PhaseVector", "RotationVector", "RRIntervalVector",
    "AngularViewVector",
)  # fmt: skip
# So far, in mm, ITK's grid may be off the one that the attributes give.
_ROUNDING = 0.05


class Film(NamedTuple):
    """Grid of an image whose frames are not placed one by one, and what to tell of it."""

    grid: Grid
    warnings: tuple[str, ...]


def film_of(header: Dataset, frames: list[Frame], size: tuple[int, int]) -> Film:
    """Where a picture or a film lies.

    Args:
        header: of the file.
        frames: of it.
        size: rows and columns.
    """
    count = len(frames)
    shape = (size[1], size[0]) + ((count,) if count > 1 else ())
    plain = picture_grid(frames[0], count, size)
    place = _place(header)
    if place is None and count == 1:
        return Film(plain, ())
    itks = _of_itk(Path(str(header.filename)), shape)
    stack, doubt = _stack(header, count, place)
    if stack is not None and (itks is None or _near(stack, itks, shape)):
        return Film(Grid(shape, LPS @ stack), ())
    warnings: tuple[str, ...] = ()
    if place is not None or header.get("Modality") in _SECTIONS:
        warnings = (
            f"where it lies in the patient is not known: {doubt}. The label map lies where ITK, "
            "and so 3D Slicer, puts the image; sizes in mm are not known",
        )
    affine = plain.affine if itks is None else itks
    return Film(Grid(shape, affine, has_patient_space=False), warnings)


def _place(header: Dataset) -> Dataset | None:
    """What has the position and the orientation: the image, or the gamma camera's detector."""
    detectors = header.get("DetectorInformationSequence") or []
    for holder in (*detectors[:1], header):
        if holder.get("ImagePositionPatient") and holder.get("ImageOrientationPatient"):
            return holder
    return None


def _stack(
    header: Dataset, count: int, place: Dataset | None
) -> tuple[NDArray[np.float64] | None, str]:
    """The affine to LPS+ of a stack of slices; else why nothing says that it is one."""
    between = header.get("SpacingBetweenSlices")
    if place is None:
        return None, "it tells no position and orientation"
    if not header.get("PixelSpacing"):
        return None, "it tells no PixelSpacing"
    if count == 1:
        return None, "it tells no place of its plane"
    if header.get("Modality") not in _SECTIONS or any(name in header for name in _OF_TIME):
        return None, "its frames are moments of a film, not slices"
    if any(len(set(_values(header, name))) > 1 for name in _OF_NM):
        return None, "its frames differ in more than their slice"
    if "SliceVector" in header and _values(header, "SliceVector") != list(range(1, count + 1)):
        return None, "its frames are not in the order of their slices"
    if not between:
        return None, "it tells no SpacingBetweenSlices"
    orientation = np.array(place.ImageOrientationPatient, float).reshape(2, 3)
    rows, columns = (vector / np.linalg.norm(vector) for vector in orientation)
    spacing = [float(value) for value in header.PixelSpacing]
    affine = np.eye(4)
    affine[:3, 0] = rows * spacing[1]
    affine[:3, 1] = columns * spacing[0]
    affine[:3, 2] = np.cross(rows, columns) * float(between)
    affine[:3, 3] = np.array(place.ImagePositionPatient, float)
    return affine, ""


def _values(header: Dataset, name: str) -> list[int]:
    values = header.get(name)
    if values is None:
        return []
    return [int(value) for value in (values if not isinstance(values, int) else [values])]


def _near(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    apart = np.abs(one - other)[:3] @ np.array([*shape, 1.0])
    return bool(apart.max() <= _ROUNDING)


def _of_itk(path: Path, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """The affine to LPS+ that ITK gives a file; none where it cannot read it."""
    import SimpleITK as sitk

    # its warnings, printed, would come from nowhere
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    if tuple(reader.GetSize())[: len(shape)] != shape or reader.GetDimension() != 3:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    return affine
