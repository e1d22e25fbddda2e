"""Reading DICOM: one series from a folder, or one file (PS3.3 C.7.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from esp_medsam_app.data.dicom_geometry import Frame, picture_grid, volume_grid
from esp_medsam_app.data.dicom_pixels import frames_of, stacked
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError

_PREAMBLE = 128
# Objects of these modalities describe images, they are none (PS3.3 C.7.3.1.1.1).
_NO_IMAGES = {
    "SEG": "a segmentation",
    "SR": "a report",
    "RTSTRUCT": "a structure set",
    "RTPLAN": "a treatment plan",
    "RTDOSE": "a dose distribution",
    "PR": "a presentation state",
    "KO": "a list of key objects",
    "DOC": "a document",
    "REG": "a registration",
}


def is_dicom_file(path: Path) -> bool:
    """Whether a file has DICOM's preamble and prefix (PS3.10 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path) -> MedicalImage:
    """Read the one series of a folder, or one file.

    Slices are ordered along the normal of their plane. Files in the folder that are no images
    (reports, segmentations, other formats) are left out.

    Raises:
        InputError: no image, several series, localizers among the slices, slices that are
            missing, doubled or of different size, or pixel data that cannot be decoded.
    """
    if path.is_file():
        return _read_instances([_dataset(path)], path)
    datasets = [_dataset(file) for file in _dicom_files(path)]
    images = [dataset for dataset in datasets if _is_image(dataset)]
    if not images:
        kind = _NO_IMAGES.get(_modality(datasets[0]) or "") if datasets else None
        raise InputError(
            f"the folder holds {kind or 'no DICOM image'}" + (" only" if kind else ""),
            path=path,
            remedy="Give the folder of one series of images",
        )
    return _read_instances(_one_series(images, path), path)


def _dicom_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for file in files if is_dicom_file(file)]


def _dataset(path: Path) -> Dataset:
    try:
        # files without preamble are common as .dcm of old archives
        dataset = pydicom.dcmread(path, force=not is_dicom_file(path))
    except (InvalidDicomError, OSError, EOFError, ValueError, AttributeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise InputError(
            f"the file is truncated or no DICOM ({error})",
            path=path,
            remedy="Export or copy it again",
        ) from error
    if "SOPClassUID" not in dataset and "PixelData" not in dataset:
        raise InputError("not a DICOM file", path=path, remedy="Export or copy it again")
    return dataset


def _modality(dataset: Dataset) -> str | None:
    value = dataset.get("Modality")
    return str(value) if value else None


def _is_image(dataset: Dataset) -> bool:
    return "Rows" in dataset and "Columns" in dataset and _modality(dataset) not in _NO_IMAGES


def _one_series(datasets: Sequence[Dataset], path: Path) -> list[Dataset]:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for dataset in datasets:
        series[str(dataset.get("SeriesInstanceUID", ""))].append(dataset)
    if len(series) > 1:
        listed = "; ".join(
            f"{uid} ({members[0].get('SeriesDescription', 'no description')}, {len(members)} files)"
            for uid, members in sorted(series.items())[:5]
        )
        raise InputError(
            f"the folder holds {len(series)} series: {listed}",
            path=path,
            remedy="Put each series into a folder of its own",
        )
    return list(datasets)


def _read_instances(datasets: Sequence[Dataset], path: Path) -> MedicalImage:
    first = datasets[0]
    modality = _modality(first)
    if not _is_image(first):
        what = _NO_IMAGES.get(modality or "", "no image")
        raise InputError(
            f"the file is {what}, not an image to segment",
            path=path,
            remedy="Give the images it belongs to",
        )
    pixels: list[np.ndarray] = []
    frames: list[Frame] = []
    for dataset in datasets:
        source = Path(str(dataset.filename)) if getattr(dataset, "filename", None) else path
        pixels += frames_of(dataset, source)
        frames += Frame.all_of(dataset, source)
    if len({array.shape for array in pixels}) > 1:
        sizes = sorted({f"{array.shape[1]} x {array.shape[0]}" for array in pixels})
        raise InputError(
            f"slices of different size ({', '.join(sizes)}): not one volume",
            path=path,
            remedy="Take localizers and other images out of the folder",
        )
    if all(frame.has_position for frame in frames):
        order, grid = volume_grid(frames, pixels[0].shape[:2], path)
        voxels = stacked([pixels[index] for index in order], flat=False)
        return MedicalImage(voxels, grid, path, modality)
    grid = picture_grid(frames[0], len(pixels), pixels[0].shape[:2])
    return MedicalImage(stacked(pixels, flat=len(pixels) == 1), grid, path, modality)
