"""Reading DICOM: one series from a folder, or one file (PS3.3 C.7.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from pydicom.dataset import Dataset

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.dicom_bytes import read_dataset
from esp_medsam_app.data.dicom_films import film_of
from esp_medsam_app.data.dicom_geometry import Frame, volume_grid
from esp_medsam_app.data.dicom_instances import (
    is_capture,
    is_placed,
    without_captures,
    without_copies,
)
from esp_medsam_app.data.dicom_pixels import bytes_a_pixel, frames_of, stacked
from esp_medsam_app.data.formats import DICOM, is_dicom_file, suffix_of
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError

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


class SeriesTags(NamedTuple):
    """What DICOM says an image is of: the fields of `MedicalImage` that begin with `dicom_`."""

    modality: str | None = None
    body_part: str | None = None
    description: str | None = None


class Planes(NamedTuple):
    """What an image is made of.

    Attributes:
        headers: of its instances, without pixels.
        order: of the frames, counted through all instances, along the grid's last index.
        grid: of the image.
        warnings: what a person should know of what was read.
    """

    headers: list[Dataset]
    order: list[int]
    grid: Grid
    warnings: tuple[str, ...] = ()


def is_series_folder(path: Path) -> bool:
    """Whether a folder directly holds slices of a series.

    Judged by its first DICOM image that is no picture of a screen: one with a position or with
    functional groups is a slice; one without, such as an X-ray, is an image by itself.
    """
    try:
        for file in _dicom_files(path):
            dataset = read_dataset(file, stop_before_pixels=True, force=True)
            if is_image(dataset) and not is_capture(dataset):
                return is_placed(dataset)
    except Exception:  # damaged: whether it is a series is for `read_dicom` to tell
        return True
    return False


def read_dicom(path: Path, admission: Admission | None = None) -> MedicalImage:
    """Read the one series of a folder, or one file.

    Slices are ordered along the normal of their plane. Files in the folder that are no images
    (reports, segmentations, other formats) are left out. An image without a place in the patient
    (X-ray, photograph) is 2D, a film of such a volume whose last index counts frames.

    Args:
        path: file, or folder of a series.
        admission: what it may become; anything by default.

    Raises:
        InputError: no image, not admitted, several series, localizers among the slices, slices
            that are missing, doubled or of different size, or pixel data that cannot be decoded.
    """
    with _explained(path):
        return _read_instances(*_images_of(path), path, admission or Admission())


def read_planes(path: Path) -> Planes:
    """Where the image of a folder or a file lies, without its pixels.

    Raises:
        InputError: as `read_dicom`, but for the pixels.
    """
    with _explained(path):
        return _planes(*_images_of(path), path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # values that break the standard turn up anywhere
        raise InputError(
            f"damaged, or not as DICOM wants it ({error or type(error).__name__})",
            path=path,
            remedy="Export it again",
        ) from error


def _images_of(path: Path) -> tuple[list[Dataset], tuple[str, ...]]:
    """Headers of the one series of images, and what to tell of it."""
    if path.is_file():
        return [read_header(path)], ()
    headers = [read_header(file) for file in _dicom_files(path)]
    images = [header for header in headers if is_image(header)]
    if not images:
        kind = _NO_IMAGES.get(_modality(headers[0]) or "") if headers else None
        raise InputError(
            f"the folder holds {kind or 'no DICOM image'}" + (" only" if kind else ""),
            path=path,
            remedy="Give the folder of one series of images",
        )
    instances = without_captures(without_copies(_one_series(images, path)))
    return instances.images, instances.warnings


def _dicom_files(folder: Path) -> list[Path]:
    """A damaged file counts if its name says DICOM: a slice must not go missing unnoticed."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [
        file
        for file in files
        if not file.name.startswith(".") and (suffix_of(file) in DICOM or is_dicom_file(file))
    ]


def read_header(path: Path) -> Dataset:
    """Everything but the pixels; raises InputError for what is no DICOM."""
    return _dataset(path, stop_before_pixels=True)


def _dataset(path: Path, stop_before_pixels: bool = False) -> Dataset:
    begins_as_dicom = is_dicom_file(path)
    try:
        # files without preamble are common as .dcm of old archives
        dataset = read_dataset(
            path, force=not begins_as_dicom, stop_before_pixels=stop_before_pixels
        )
    except (InputError, MemoryError, PermissionError):
        raise
    except Exception as error:  # pydicom raises whatever its parser meets
        raise InputError(
            f"the file is truncated or no DICOM ({error})",
            path=path,
            remedy="Export or copy it again",
        ) from error
    # of a deflated file pydicom names a buffer
    dataset.filename = str(path)
    if not begins_as_dicom and "SOPClassUID" not in dataset and "Rows" not in dataset:
        raise InputError("not a DICOM file", path=path, remedy="Export or copy it again")
    return dataset


def series_tags(path: Path) -> SeriesTags:
    """What a file or the first image of a folder says of itself; nothing where there is none.

    For images that another program converted from the series.
    """
    try:
        for file in [path] if path.is_file() else _dicom_files(path):
            dataset = read_header(file)
            if is_image(dataset):
                return _tags(dataset)
    except (InputError, OSError):
        pass
    return SeriesTags()


def _tags(dataset: Dataset) -> SeriesTags:
    texts = [str(dataset.get(name) or "") for name in ("StudyDescription", "SeriesDescription")]
    return SeriesTags(
        _modality(dataset),
        str(dataset.get("BodyPartExamined") or "") or None,
        " ".join(text for text in texts if text) or None,
    )


def _modality(dataset: Dataset) -> str | None:
    value = dataset.get("Modality")
    return str(value) if value else None


def is_image(dataset: Dataset) -> bool:
    """Whether a header is that of an image, not of something that describes images."""
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


def _read_instances(
    headers: Sequence[Dataset], warnings: tuple[str, ...], path: Path, admission: Admission
) -> MedicalImage:
    planes = _planes(headers, warnings, path)
    admission.check(planes.grid.shape, bytes_a_pixel(headers, path), path)
    pixels: list[NDArray[Any]] = []
    for header in headers:
        source = Path(header.filename)
        pixels += frames_of(_dataset(source), source)
    if len({array.shape for array in pixels}) > 1:
        raise InputError(
            "grey and coloured slices: not one volume",
            path=path,
            remedy="Take other images out of the folder",
        )
    voxels = stacked([pixels[index] for index in planes.order], flat=len(planes.grid.shape) == 2)
    return MedicalImage(voxels, planes.grid, path, *_tags(headers[0]), planes.warnings)


def _planes(headers: Sequence[Dataset], warnings: tuple[str, ...], path: Path) -> Planes:
    """Where the frames lie: clear, or refused, before pixels take time and memory."""
    modality = _modality(headers[0])
    if not is_image(headers[0]):
        what = _NO_IMAGES.get(modality or "", "DICOM without an image")
        raise InputError(
            f"the file is {what}, not an image to segment",
            path=path,
            remedy="Give the images it belongs to",
        )
    frames: list[Frame] = []
    for header in headers:
        frames += Frame.all_of(header, Path(header.filename))
    without = [frame for frame in frames if not frame.has_position]
    if without and len(headers) > 1:
        raise InputError(
            f"{len({frame.path for frame in without})} of {len(headers)} images do not say where "
            f"in the patient they lie ({without[0].path.name}), so they form no volume",
            path=path,
            remedy="Give such images one file at a time",
        )
    sizes = {(int(header.Rows), int(header.Columns)) for header in headers}
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for rows, columns in sorted(sizes))
        raise InputError(
            f"slices of different size ({listed}): not one volume",
            path=path,
            remedy="Take localizers and other images out of the folder",
        )
    (size,) = sizes
    if without or (len(frames) == 1 and not frames[0].has_spacing):
        film = film_of(headers[0], frames, size)
        order, grid = list(range(len(frames))), film.grid
        warnings += film.warnings
    else:
        order, grid = volume_grid(frames, size, path)
    return Planes(list(headers), order, grid, warnings)
