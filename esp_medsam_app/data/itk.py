"""Reading NRRD and MetaImage through SimpleITK."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from esp_medsam_app.data.formats import LARGEST_RATIO
from esp_medsam_app.data.image import LPS, Grid, MedicalImage
from esp_medsam_app.errors import InputError


def read_itk(path: Path) -> MedicalImage:
    """Read a 2D or 3D image that ITK reads.

    A 2D file cannot say where the patient lies; it is a picture.

    Raises:
        InputError: damaged, 4D, or with several values a voxel that are no colours.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) not in (2, 3):
            raise InputError(
                f"{len(size)}D image of {' x '.join(map(str, size))} voxels; 2D and 3D can be read",
                path=path,
                remedy="Split it, for example into one file a time point",
            )
        _check(reader, path)
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"the file is truncated, damaged or not what its name says ({reason})",
            path=path,
            remedy="Export or copy it again",
        ) from error
    components = image.GetNumberOfComponentsPerPixel()
    count = image.GetDimension()
    array = sitk.GetArrayFromImage(image)
    if components > 1:
        if components not in (3, 4) or array.dtype != np.uint8:
            raise InputError(
                f"{components} values of type {array.dtype} in each voxel are no colours",
                path=path,
                remedy="Save one channel, or one layer of a segmentation, in each file",
            )
        array = np.moveaxis(array[..., :3], -1, 0)
    voxels = np.ascontiguousarray(array.T)
    if array.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    affine = np.eye(4)
    matrix = np.array(image.GetDirection()).reshape(count, count) * np.array(image.GetSpacing())
    affine[:count, :count] = matrix
    affine[:count, 3] = image.GetOrigin()
    if count == 3:
        affine = LPS @ affine
    grid = Grid(
        shape=tuple(int(extent) for extent in size), affine=affine, has_patient_space=count == 3
    )
    return MedicalImage(voxels, grid, path)


def _check(reader: sitk.ImageFileReader, path: Path) -> None:
    """Refuse by the header, before memory is taken for voxels that the files cannot hold."""
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(
            "voxels that are complex numbers", path=path, remedy="Save their magnitude"
        )
    claimed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
    # a header may name files beside it
    detached = path.suffix.lower() in (".mhd", ".nhdr")
    files = [file for file in path.parent.iterdir() if file.is_file()] if detached else [path]
    if claimed > sum(file.stat().st_size for file in files) * LARGEST_RATIO:
        raise InputError(
            "the file is truncated or damaged: it cannot hold an image of "
            f"{' x '.join(map(str, reader.GetSize()))} voxels",
            path=path,
            remedy="Export or copy it again",
        )
