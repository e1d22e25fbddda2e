"""Writing label maps: on the very grid of the image, and never half a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from esp_medsam_app.data.image import LPS, Grid, MedicalImage
from esp_medsam_app.data.nifti import save_nifti
from esp_medsam_app.data.nifti_grid import copy_geometry
from esp_medsam_app.data.turns import TAG, UPRIGHT, orientation_of
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".png")
# NIfTI's codes for what an affine leads to: the scanner, or another image it is aligned with.
_SCANNER, _ALIGNED = 1, 2
# Cosine up to which axes count as at right angles: positions are written with few digits.
_STRAIGHT = 1e-2


def writable_suffix(path: str | Path) -> str | None:
    """The suffix of a file name, if label maps can be written so."""
    name = Path(path).name.lower()
    return next((suffix for suffix in WRITABLE if name.endswith(suffix)), None)


def write_label_map(
    path: str | Path, labels: NDArray[np.integer], grid: Grid, compress: bool = True
) -> Path:
    """Write a label map; the file appears whole or not at all.

    A NIfTI file gets shape, qform and sform of the NIfTI image it belongs to. Any other 2D grid
    becomes a volume of one slice in NIfTI and NRRD, as viewers load pictures and X-rays; without
    patient space it lies where ITK, and so Slicer, puts those: x to the left, y to the back, from
    the origin. PNG is for 2D grids, and has the orientation tag of its picture.

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
    with written_whole(path) as partial:
        _write(partial, suffix, labels, grid, compress)
    return path


def write_image(stem: Path, image: MedicalImage) -> Path:
    """Write an image so that viewers lay label maps of its grid over it; whole or not at all.

    Args:
        stem: path without suffix.
        image: grey: becomes .nii.gz; a coloured picture: .png.

    Returns:
        The path written.

    Raises:
        InputError: slices that a tilted gantry has shifted, which viewers do not show in their
            place; a coloured volume.
        OSError: the file cannot be written.
    """
    if image.is_rgb and len(image.grid.shape) == 2:
        path = stem.with_name(f"{stem.name}.png")
        with written_whole(path) as partial:
            Image.fromarray(np.ascontiguousarray(image.voxels.swapaxes(0, 1))).save(partial)
        return path
    if image.is_rgb:
        raise InputError(
            "a coloured film, for which there is no volume format that viewers read",
            remedy="Open it in OHIF, or save its frames as pictures",
        )
    if not _orthogonal(image.grid.affine, tolerance=_STRAIGHT):
        raise InputError(
            "the slices are shifted against each other, as by a tilted gantry: as a volume, "
            "viewers would show it in the wrong place",
            remedy="Open the series in OHIF, or ask for the result as DICOM SEG, which places "
            "every slice by itself",
        )
    path = stem.with_name(f"{stem.name}.nii.gz")
    with written_whole(path) as partial:
        save_nifti(_nifti_image(image.voxels, image.grid), partial)
    return path


def _write(
    path: Path, suffix: str, labels: NDArray[np.integer], grid: Grid, compress: bool
) -> None:
    if suffix == ".png":
        # programs that turn the picture turn its label map, and those that do not, do not
        exif = Image.Exif()
        if grid.upright != UPRIGHT:
            exif[TAG] = orientation_of(grid.upright)
        Image.fromarray(np.ascontiguousarray(labels.T)).save(path, exif=exif)
    elif suffix == ".nrrd":
        try:
            sitk.WriteImage(_itk_image(labels, grid), str(path), useCompression=compress)
        except RuntimeError as error:
            raise OSError(f"ITK could not write the file: {error}") from error
    else:
        save_nifti(_nifti_image(labels, grid), path)


def _nifti_image(labels: NDArray[Any], grid: Grid) -> nib.Nifti1Image:
    source = grid.nifti_header
    if source is None:
        voxels, affine = _volume(labels, grid)
        image = nib.Nifti1Image(voxels, affine)
        code = _SCANNER if grid.has_patient_space else _ALIGNED
        image.set_sform(affine, code)
        if _orthogonal(affine):
            image.set_qform(affine, code)
        else:
            # a quaternion cannot hold a shear; the sform does
            image.header["qform_code"] = 0
        image.header.set_xyzt_units("mm")
        return image
    # NIfTI-2 has more digits in its sform
    kind = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class()
    copy_geometry(source, header)
    header.set_data_dtype(labels.dtype)
    # an affine of its own would take the place of the header's fields
    image = kind(labels, None, header)
    # of a 2D image nibabel forgets the third size
    copy_geometry(source, image.header)
    return image


def _itk_image(labels: NDArray[np.integer], grid: Grid) -> sitk.Image:
    """The same grid in ITK's terms, LPS+."""
    voxels, affine = _volume(labels, grid)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing([float(value) for value in spacing])
    image.SetDirection([float(value) for value in (lps[:3, :3] / spacing).ravel()])
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    return image


def _volume(labels: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """`[x, y, z]` and the affine to RAS+ under which viewers find it on its image."""
    voxels = labels if labels.ndim == 3 else labels[..., np.newaxis]
    # without patient space the affine is from ITK's axes, which it takes to be LPS+
    return voxels, grid.affine if grid.has_patient_space else LPS @ grid.affine


def _orthogonal(affine: NDArray[np.float64], tolerance: float = 1e-5) -> bool:
    matrix = affine[:3, :3]
    product = (matrix / np.linalg.norm(matrix, axis=0)).T @ (
        matrix / np.linalg.norm(matrix, axis=0)
    )
    return bool(np.allclose(product, np.eye(3), atol=tolerance))
