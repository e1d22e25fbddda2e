"""Reading images and label maps, whatever their format, with errors that say what is wrong.

pydicom and SimpleITK are imported where a file needs them: a GPU host that trains on pictures and
NIfTI has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.formats import DICOM, ITK, NIFTI, PICTURES, is_dicom_file, suffix_of
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.label_placing import placed
from esp_medsam_app.data.label_values import label_values
from esp_medsam_app.data.nifti import read_nifti, read_nifti_grid
from esp_medsam_app.data.pictures import read_picture, read_picture_grid
from esp_medsam_app.errors import InputError


def read_image(path: str | Path) -> MedicalImage:
    """Read an image: a file of any supported format, or the folder of one DICOM series.

    Raises:
        InputError: missing, unknown, damaged or not a still image of two or three dimensions;
            voxels that are not finite; too large for the file's size (see `Admission`).
    """
    path = Path(path)
    with _explained(path):
        image = _read(path, Admission.of_image)
    _check(image, path)
    return image


def read_grid(path: str | Path) -> Grid:
    """The grid of an image, without its voxels.

    Raises:
        InputError: as `read_image`, as far as headers tell.
    """
    path = Path(path)
    with _explained(path):
        grid = _grid(path)
    _check_grid(grid, path)
    return grid


def read_label_map(
    path: str | Path, grid: Grid | None = None, *, kept: bool = False
) -> MedicalImage:
    """Read a label map; voxels come as uint8, or uint16 where a label is above 255.

    Args:
        path: file or DICOM folder.
        grid: of the image it belongs to, where known: the label map takes its shape where it lies
            on it in one way only, as `placed` tells. It then has this very grid.
        kept: it was admitted before, and may take what memory it needs.

    Raises:
        InputError: as `read_image`, and for colours and values that are no labels.
    """
    path = Path(path)
    shape = grid.shape if grid is not None else None
    with _explained(path):
        image = _read(path, lambda path: Admission.of_labels(path, shape, kept=kept))
    _check_grid(image.grid, path)
    voxels = image.voxels
    if image.is_rgb:
        if not (voxels == voxels[..., :1]).all():
            raise InputError(
                "colours where label numbers are expected",
                path=image.path,
                remedy="Save the label map as a grey image whose values are the labels' numbers",
            )
        voxels = voxels[..., 0]
    if not voxels.size:
        raise InputError("the label map has no voxels", path=path, remedy="Export it again")
    voxels = label_values(voxels, path)
    own = image.grid
    if grid is not None:
        voxels, own = placed(voxels, own, grid, may_be_cropped=suffix_of(path) == ".seg.nrrd")
    return MedicalImage(
        voxels=voxels,
        grid=own,
        path=image.path,
        dicom_modality=image.dicom_modality,
    )


def is_readable_name(path: str | Path) -> bool:
    """Whether this looks like an image: by its suffix, or by content for DICOM.

    A folder counts if it directly holds the slices of a DICOM series. A folder of X-rays does not:
    each of its files is an image by itself.
    """
    path = Path(path)
    if path.is_dir():
        from esp_medsam_app.data.dicom import is_series_folder

        return is_series_folder(path)
    return suffix_of(path) is not None or is_dicom_file(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror or error})",
            path=path,
            remedy="Check its permissions and the disk",
        ) from error
    except MemoryError as error:
        raise InputError(
            "needs more memory than there is", path=path, remedy="Crop or downsample it"
        ) from error


def _read(path: Path, admitted: Callable[[Path], Admission]) -> MedicalImage:
    kind = _kind(path)
    admission = admitted(path)
    if kind is NIFTI:
        return read_nifti(path, admission)
    if kind is ITK:
        from esp_medsam_app.data.itk import read_itk

        return read_itk(path, admission)
    if kind is PICTURES:
        return read_picture(path, admission)
    from esp_medsam_app.data.dicom import read_dicom

    return read_dicom(path, admission)


def _grid(path: Path) -> Grid:
    kind = _kind(path)
    if kind is NIFTI:
        return read_nifti_grid(path)
    if kind is ITK:
        from esp_medsam_app.data.itk import read_itk_grid

        return read_itk_grid(path)
    if kind is PICTURES:
        return read_picture_grid(path)
    from esp_medsam_app.data.dicom import read_planes

    return read_planes(path).grid


def _kind(path: Path) -> tuple[str, ...]:
    """The suffixes of the formats that a file or folder is read as."""
    if not path.exists():
        raise InputError("there is no such file or folder", path=path, remedy="Check the path")
    if path.is_dir():
        return DICOM
    if not path.is_file():
        raise InputError("no plain file", path=path, remedy="Copy its content into a file")
    if path.stat().st_size == 0:
        raise InputError("the file is empty", path=path, remedy="Export or copy it again")
    with path.open("rb"):
        pass  # a refusal is told as such, not as a damaged file
    suffix = suffix_of(path)
    for kind in (NIFTI, ITK, PICTURES):
        if suffix in kind:
            return kind
    if suffix in DICOM or is_dicom_file(path):
        return DICOM
    raise InputError(
        "not a format that can be read",
        path=path,
        remedy="NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG, TIFF, BMP, GIF and PPM can",
    )


def _check(image: MedicalImage, path: Path) -> None:
    voxels = image.voxels
    if voxels.size == 0:
        raise InputError("the image has no voxels", path=path, remedy="Export it again")
    if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
        count = int((~np.isfinite(voxels)).sum())
        raise InputError(
            f"{count} of {voxels.size} voxels are no numbers (NaN or infinite)",
            path=path,
            remedy="Replace them, for example by the value of air",
        )
    _check_grid(image.grid, path)


def _check_grid(grid: Grid, path: Path) -> None:
    affine = grid.affine
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # relative to the spacing: microscopes have tiny ones
    if not (
        np.isfinite(affine).all()
        and lengths.min() > 0
        and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6
    ):
        raise InputError(
            "its affine does not say where the voxels lie: spacing of zero or parallel axes",
            path=path,
            remedy="Mend the header or export the image again",
        )


def find_images(folders: Sequence[Path]) -> list[Path]:
    """All images below some folders, by name; volumes and DICOM files count too.

    Raises:
        InputError: a folder that is not there, or no image at all.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError("there is no such folder", path=folder, remedy="Check the path")
    found = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and is_readable_name(path)
    )
    if not found:
        raise InputError(
            "no image in the folders",
            path=folders[0] if folders else None,
            remedy="Give folders with NIfTI, NRRD, DICOM, PNG, JPEG or TIFF files",
        )
    return found
