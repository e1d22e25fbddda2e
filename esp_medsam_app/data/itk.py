"""Reading NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.attached import voxel_files
from esp_medsam_app.data.formats import LARGEST_RATIO, suffix_of
from esp_medsam_app.data.image import LPS, Grid, MedicalImage
from esp_medsam_app.data.label_values import label_values
from esp_medsam_app.errors import InputError

# By its content ITK would take a file for any of its formats, of which some name further files.
_READERS = {".mha": "MetaImageIO", ".mhd": "MetaImageIO"}


def read_itk(path: Path, admission: Admission | None = None) -> MedicalImage:
    """Read a 2D or 3D image that ITK reads.

    A 2D file cannot say where the patient lies; it is a picture.

    Args:
        path: the file.
        admission: what it may become; anything by default.

    Raises:
        InputError: damaged, 4D, not admitted, with voxels in a file that it may not name, or with
            several values a voxel that are no colours.
    """
    admission = admission or Admission()
    with _explained(path):
        reader = _opened(path)
        grid = _grid(reader)
        item = _item(reader)
        components = reader.GetNumberOfComponents()
        as_labels = admission.as_labels and components == 1
        # ITK's own voxels, and the copy; labels become small ones, float64 becomes float32
        working = 2 * item + (4 if item > 4 else 0)
        admission.check(grid.shape, item + 2 if as_labels else components * working, path)
        image = reader.Execute()
    array = sitk.GetArrayViewFromImage(image)
    if components > 1:
        if components not in (3, 4) or array.dtype != np.uint8:
            raise InputError(
                f"{components} values of type {array.dtype} in each voxel are no colours",
                path=path,
                remedy="Save one channel, or one layer of a segmentation, in each file",
            )
        array = np.moveaxis(array[..., :3], -1, 0)
    if as_labels:
        # the view is of ITK's memory, which goes
        voxels = label_values(array.T, path)
        return MedicalImage(voxels.copy("K") if array.dtype == np.uint8 else voxels, grid, path)
    kind = np.float32 if array.dtype == np.float64 else array.dtype
    return MedicalImage(array.T.astype(kind, order="C"), grid, path)


def read_itk_grid(path: Path) -> Grid:
    """Where the voxels of a file lie, by its header.

    Raises:
        InputError: as `read_itk`, but for the voxels.
    """
    with _explained(path):
        return _grid(_opened(path))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        if "alloc" in reason:
            raise MemoryError from error
        raise InputError(
            f"the file is truncated, damaged or not what its name says ({reason})",
            path=path,
            remedy="Export or copy it again",
        ) from error


def _opened(path: Path) -> sitk.ImageFileReader:
    """ITK's reader, which knows the header."""
    files = voxel_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS.get(suffix_of(path) or "", "NrrdImageIO"))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) not in (2, 3):
        raise InputError(
            f"{len(size)}D image of {' x '.join(map(str, size))} voxels; 2D and 3D can be read",
            path=path,
            remedy="Split it, for example into one file a time point",
        )
    _check(reader, path, files)
    return reader


def _grid(reader: sitk.ImageFileReader) -> Grid:
    count = reader.GetDimension()
    affine = np.eye(4)
    matrix = np.array(reader.GetDirection()).reshape(count, count) * np.array(reader.GetSpacing())
    affine[:count, :count] = matrix
    affine[:count, 3] = reader.GetOrigin()
    if count == 3:
        affine = LPS @ affine
    return Grid(
        shape=tuple(int(extent) for extent in reader.GetSize()),
        affine=affine,
        has_patient_space=count == 3,
    )


def _item(reader: sitk.ImageFileReader) -> int:
    """Bytes of a value, by ITK's name of its type."""
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.search(r"(8|16|32|64)-bit", name)
    return int(bits[1]) // 8 if bits else 8


def _check(reader: sitk.ImageFileReader, path: Path, files: Sequence[Path]) -> None:
    """Refuse by the header, before memory is taken for voxels that the files cannot hold."""
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(
            "voxels that are complex numbers", path=path, remedy="Save their magnitude"
        )
    claimed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    if claimed > sum(file.stat().st_size for file in files) * LARGEST_RATIO:
        raise InputError(
            "the file is truncated or damaged: it cannot hold an image of "
            f"{' x '.join(map(str, reader.GetSize()))} voxels",
            path=path,
            remedy="Export or copy it again",
        )
