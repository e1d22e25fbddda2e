"""Writing label maps: on the very grid of the image, and never half a file."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from esp_medsam_app.data.image import Grid

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".png")
# RAS+ to the LPS+ of DICOM and ITK.
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER = 1


def writable_suffix(path: str | Path) -> str | None:
    """The suffix of a file name, if label maps can be written so."""
    name = Path(path).name.lower()
    return next((suffix for suffix in WRITABLE if name.endswith(suffix)), None)


def write_label_map(
    path: str | Path, labels: NDArray[np.integer], grid: Grid, compress: bool = True
) -> Path:
    """Write a label map; the file appears whole or not at all.

    A NIfTI file gets qform and sform of the image it belongs to. In NIfTI and NRRD a 2D grid is
    written as one slice where it has patient space (2D images of these formats cannot hold it),
    else as a 2D image. PNG is for 2D grids.

    Args:
        path: ends with .nii, .nii.gz, .nrrd or .png.
        labels: uint8 or uint16 of the grid's shape.
        grid: of the image.
        compress: whether an NRRD file is compressed; the others follow their suffix.

    Returns:
        The path written.

    Raises:
        ValueError: labels do not fit the grid, have another type, or the format cannot hold them.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = writable_suffix(path)
    if labels.shape != grid.shape:
        raise ValueError(f"labels of {labels.shape} on a grid of {grid.shape}")
    if labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels are {labels.dtype}, not uint8 or uint16")
    if suffix is None:
        raise ValueError(f"{path.name} ends with none of {', '.join(WRITABLE)}")
    if suffix == ".png" and labels.ndim != 2:
        raise ValueError("PNG holds 2D label maps only")
    path.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that it can be moved into its place in one step
    partial = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        _write(partial, suffix, labels, grid, compress)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def _write(
    path: Path, suffix: str, labels: NDArray[np.integer], grid: Grid, compress: bool
) -> None:
    if suffix == ".png":
        Image.fromarray(np.ascontiguousarray(labels.T)).save(path)
    elif suffix == ".nrrd":
        try:
            sitk.WriteImage(_itk_image(labels, grid), str(path), useCompression=compress)
        except RuntimeError as error:
            raise OSError(f"ITK could not write the file: {error}") from error
    else:
        nib.save(_nifti_image(labels, grid), path)


def _nifti_image(labels: NDArray[np.integer], grid: Grid) -> nib.Nifti1Image:
    source = grid.nifti_header
    image = nib.Nifti1Image(labels, grid.affine)
    if source is None:
        code = _SCANNER if grid.has_patient_space else 0
        image.set_sform(grid.affine, code)
        if code and _orthogonal(grid.affine):
            image.set_qform(grid.affine, code)
        else:
            # a quaternion cannot hold a shear; the sform does
            image.header["qform_code"] = 0
        image.header.set_xyzt_units("mm")
        return image
    for field in (
        "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
        "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
    ):  # fmt: skip
        image.header[field] = source[field]
    return image


def _itk_image(labels: NDArray[np.integer], grid: Grid) -> sitk.Image:
    """The same grid in ITK's terms, LPS+."""
    if grid.has_patient_space and labels.ndim == 2:
        labels = labels[..., np.newaxis]
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels.T))
    lps = _LPS @ grid.affine if grid.has_patient_space else grid.affine
    count = labels.ndim
    matrix = lps[:count, :count]
    spacing = np.linalg.norm(matrix, axis=0)
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection([float(value) for value in (matrix / spacing).ravel()])
    image.SetOrigin([float(value) for value in lps[:count, 3]])
    return image


def _orthogonal(affine: NDArray[np.float64]) -> bool:
    matrix = affine[:3, :3]
    product = (matrix / np.linalg.norm(matrix, axis=0)).T @ (
        matrix / np.linalg.norm(matrix, axis=0)
    )
    return bool(np.allclose(product, np.eye(3), atol=1e-5))
