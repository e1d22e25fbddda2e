"""DICOM data sets made for tests: series of every kind that a PACS may hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    XRayAngiographicImageStorage,
    generate_uid,
)

ROWS, COLUMNS = 10, 12
STEP = 2.5
SPACING = (0.8, 0.7)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "XA": XRayAngiographicImageStorage,
    "US": UltrasoundImageStorage,
    "OT": SecondaryCaptureImageStorage,
    "XC": SecondaryCaptureImageStorage,
}


def oblique() -> tuple[float, ...]:
    """An orientation that is parallel to nothing."""
    angles = np.radians((15, -10, 25))
    x, y, z = (np.eye(3) for _ in range(3))
    x[1:, 1:] = [[np.cos(angles[0]), -np.sin(angles[0])], [np.sin(angles[0]), np.cos(angles[0])]]
    y[::2, ::2] = [[np.cos(angles[1]), np.sin(angles[1])], [-np.sin(angles[1]), np.cos(angles[1])]]
    z[:2, :2] = [[np.cos(angles[2]), -np.sin(angles[2])], [np.sin(angles[2]), np.cos(angles[2])]]
    turned = x @ y @ z
    return (*turned[:, 0], *turned[:, 1])


def volume(
    count: int = 6,
    *,
    modality: str = "CT",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-30.0, -20.0, 5.0),
    step: Sequence[float] | None = None,
    voxels: NDArray[np.int16] | None = None,
    common: dict[str, Any] | None = None,
) -> list[FileDataset]:
    """A series of slices, first to last along their normal.

    Args:
        count: of slices.
        modality: DICOM's.
        orientation: of the slices.
        origin: of the first one.
        step: from slice to slice; along the normal if not given, else the gantry is tilted.
        voxels: stored values `[count, ROWS, COLUMNS]`; a disc of 200 in 50 if not given.
        common: further attributes of all.
    """
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    along = np.cross(rows, columns) * STEP if step is None else np.array(step, float)
    if voxels is None:
        voxels = np.full((count, ROWS, COLUMNS), 50, np.int16)
        voxels[1 : max(2, count - 1), 3:7, 4:9] = 200
    told = {**_study(), "SeriesInstanceUID": generate_uid(), **(common or {})}
    slices = []
    for index in range(count):
        slice_ = _image(modality, voxels[index], {**told, "InstanceNumber": index + 1})
        slice_.PixelSpacing = [f"{value:g}" for value in SPACING]
        slice_.SliceThickness = f"{STEP:g}"
        slice_.ImageOrientationPatient = [f"{value:.9f}" for value in orientation]
        slice_.ImagePositionPatient = [f"{value:.6f}" for value in np.array(origin) + index * along]
        if modality == "CT":
            slice_.RescaleSlope, slice_.RescaleIntercept = "1", "-10"
        slices.append(slice_)
    return slices


def picture(modality: str, *, colour: bool = False, **common: Any) -> FileDataset:
    """An image without a place in the patient: X-ray, ultrasound, photograph."""
    shape = (ROWS, COLUMNS, 3) if colour else (ROWS, COLUMNS)
    pixels = np.full(shape, 50, np.uint8 if colour else np.int16)
    pixels[3:7, 4:9] = 200
    told = {**_study(), "SeriesInstanceUID": generate_uid(), "InstanceNumber": 1, **common}
    dataset = _image(modality, pixels, told)
    if modality in ("CR", "DX", "XA"):
        dataset.ImagerPixelSpacing = ["0.2", "0.2"]
    return dataset


def film(count: int = 5, modality: str = "XA") -> FileDataset:
    """A film without a place in the patient: contrast agent that runs along a vessel."""
    pixels = np.full((count, ROWS, COLUMNS), 90, np.uint8)
    for index in range(count):
        pixels[index, 4:6, : 2 + 2 * index] = 20
    told = {**_study(), "SeriesInstanceUID": generate_uid(), "InstanceNumber": 1}
    dataset = _image(modality, pixels, told)
    dataset.NumberOfFrames = count
    dataset.FrameTime, dataset.FrameIncrementPointer = "66.7", 0x00181063
    dataset.ImagerPixelSpacing = ["0.2", "0.2"]
    return dataset


def enhanced(
    count: int = 6,
    *,
    step: Sequence[float] = (0.0, 0.0, STEP),
    scans: int = 1,
    missing: Sequence[int] = (),
) -> FileDataset:
    """A multi-frame MR image, its frames in no order.

    Args:
        count: of places; no multiple of 15.
        step: from place to place; not along the normal: the gantry is tilted.
        scans: frames at each place.
        missing: places that have none.
    """
    order = [(3 * index) % count if count % 3 else (5 * index) % count for index in range(count)]
    order = [place for place in order if place not in missing] * scans
    voxels = np.full((len(order), ROWS, COLUMNS), 50, np.int16)
    for frame, place in enumerate(order):
        voxels[frame, 3:7, 4:9] = 200 + place
    told = {**_study(), "SeriesInstanceUID": generate_uid(), "InstanceNumber": 1}
    dataset = _image("MR", voxels, told)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.NumberOfFrames = len(order)
    shared = Dataset()
    shared.PlaneOrientationSequence = _one(ImageOrientationPatient=[f"{v:g}" for v in AXIAL])
    shared.PixelMeasuresSequence = _one(
        PixelSpacing=[f"{value:g}" for value in SPACING], SliceThickness=f"{STEP:g}"
    )
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for place in order:
        frame = Dataset()
        first = np.array((-30.0, -20.0, 5.0))
        position = [f"{value:.6f}" for value in first + place * np.array(step)]
        frame.PlanePositionSequence = _one(ImagePositionPatient=position)
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    return dataset


def localizer_of(slices: Sequence[FileDataset], kind: str = "LOCALIZER") -> FileDataset:
    """A scout view within the same series."""
    scout = volume(1, orientation=SAGITTAL)[0]
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        setattr(scout, name, slices[0].get(name))
    scout.ImageType = ["ORIGINAL", "PRIMARY", kind]
    scout.InstanceNumber = 0
    return scout


def phases(count: int = 4, **told: Any) -> list[FileDataset]:
    """Two scans of the same slices in one series, told apart by their acquisition."""
    first = volume(count)
    second = volume(count)
    for number, slice_ in enumerate(itertools.chain(first, second)):
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
            setattr(slice_, name, first[0].get(name))
        slice_.InstanceNumber = number + 1
        slice_.AcquisitionNumber = 1 + number // count
        for name, value in told.items():
            setattr(slice_, name, value)
    return [*first, *second]


def _study() -> dict[str, Any]:
    return {
        "StudyInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PatientID": "P1",
        "PatientName": "M\u00fcller^Anna",
        "PatientBirthDate": "19600101",
        "PatientSex": "F",
        "StudyDate": "20240102",
        "StudyTime": "101500",
        "AccessionNumber": "A1",
        "StudyID": "1",
        "ReferringPhysicianName": "",
        "SeriesNumber": 3,
        "SeriesDescription": "phantom",
    }


def _image(modality: str, pixels: NDArray[Any], told: dict[str, Any]) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = _CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer = "Phantoms"
    dataset.PositionReferenceIndicator = ""
    for name, value in told.items():
        setattr(dataset, name, value)
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    return dataset


def _one(**values: Any) -> Items:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return Items([item])
