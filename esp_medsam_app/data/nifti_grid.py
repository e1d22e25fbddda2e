"""Where a NIfTI image lies: where ITK, and so 3D Slicer, puts it.

A NIfTI header has room for two affines, the size of voxels and a unit of length, and its readers
differ where these do not agree. Viewers of this project read through ITK, so ITK's answer counts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.image import LPS
from esp_medsam_app.errors import InputError

_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units",
)  # fmt: skip
# Millimetres in the units of length that NIfTI knows; none is millimetres.
_MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
# So far, in voxels, affines may differ by rounding.
_ROUNDING = 1e-3
_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_SFORM = ("srow_x", "srow_y", "srow_z")
# Above this it is no size or distance, in any unit: with some of these ITK computes without an end.
_LARGEST = 1e9
# The largest extent in NIfTI-1.
_MOST = 32767
_NIFTI_2 = (
    "ITK, and so 3D Slicer, does not read NIfTI-2. The label map is NIfTI-2 as well and lies on "
    "the image in every program that reads it; for 3D Slicer, convert both to NIfTI-1"
)
_UNSAID = (
    "its header says nothing of the patient (qform_code and sform_code are 0): as in ITK, and so "
    "in 3D Slicer, the first axis runs to the left and the second to the back, which may be wrong"
)
_REFUSED = (
    "ITK, and so 3D Slicer, refuses its header, in which no affine has axes at right angles. The "
    "label map as NIfTI has the same header and lies on the image in every program that reads it"
)


def copy_geometry(source: Any, target: Any) -> None:
    """Copy every field of a NIfTI header that says where voxels lie."""
    for field in _GEOMETRY:
        target[field] = source[field]


def affine_of(header: Any, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], str | None]:
    """The affine to RAS+ in millimetres that ITK gives an image with this header.

    A 2D image has two of ITK's dimensions; ITK gives it z = 0 and a thickness of one.

    Args:
        header: of NIfTI-1 or NIfTI-2.
        shape: 2 or 3 extents.

    Returns:
        The affine, and what to tell people about it: that the header leaves it open, or that ITK
        does not read such a file. Where ITK refuses what the header says, it is nibabel's affine.

    Raises:
        InputError: SimpleITK is not installed, and the header's fields do not agree.
        ValueError: neither ITK nor nibabel understands the header.
    """
    try:
        import SimpleITK as sitk
    except ImportError:
        return _undisputed(header), None
    # its warnings, printed, would name a file that nobody knows
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    own = type(header)
    if not _is_sane(_bare(header, own, shape)):
        return _by_nibabel(header), _REFUSED
    # newer ITKs may read NIfTI-2; the rule is that of NIfTI-1
    for kind in dict.fromkeys((own, nib.Nifti1Header)):
        affine = _by_itk(_bare(header, kind, shape), sitk)
        if affine is not None:
            if kind is not own:
                return affine, _NIFTI_2
            return affine, None if header["qform_code"] > 0 or header["sform_code"] > 0 else _UNSAID
    return _by_nibabel(header), _REFUSED


def _by_itk(header: Any, sitk: Any) -> NDArray[np.float64] | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "header.nii")
        path.write_bytes(header.binaryblock + bytes(4))
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        if type(header) is nib.Nifti1Header:
            # saves asking the readers of all formats; of NIfTI-2 this one prints that it cannot
            reader.SetImageIO("NiftiImageIO")
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return None
    count = reader.GetDimension()
    lps = np.eye(4)
    lps[:count, :count] = np.array(reader.GetDirection()).reshape(count, count)
    lps[:count, :count] *= reader.GetSpacing()
    lps[:count, 3] = reader.GetOrigin()
    return LPS @ lps


def _bare(header: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    """A header that says the same of where voxels lie, and nothing else."""
    bare = kind()
    bare.set_data_dtype(np.uint8)
    # how many voxels there are does not count, and NIfTI-1 has room for so many
    bare.set_data_shape([min(extent, _MOST) for extent in shape])
    copy_geometry(header, bare)
    # what does not count may hold anything
    for code, fields in (("qform_code", _QFORM), ("sform_code", _SFORM)):
        if bare[code] <= 0:
            for field in fields:
                bare[field] = 0
    bare["magic"] = kind.single_magic
    bare["vox_offset"] = len(bare.binaryblock) + 4
    return bare


def _is_sane(bare: Any) -> bool:
    numbers = np.concatenate(
        [np.abs(np.asarray(bare[field], np.float64).ravel()) for field in (*_QFORM, *_SFORM)]
        + [np.abs(np.asarray(bare["pixdim"][:4], np.float64))]
    )
    # a NaN is in no range
    return bool((numbers <= _LARGEST).all())


def _by_nibabel(header: Any) -> NDArray[np.float64]:
    affine = np.array(header.get_best_affine(), np.float64)
    affine[:3] *= _millimetres(header)
    return affine


def _millimetres(header: Any) -> float:
    # the lower three bits; the others are of time
    return _MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)


def _undisputed(header: Any) -> NDArray[np.float64]:
    """The affine of a header that leaves nothing to decide, for hosts without SimpleITK."""
    affine = _by_nibabel(header)
    known = [
        matrix
        for matrix in (header.get_qform(coded=True)[0], header.get_sform(coded=True)[0])
        if matrix is not None
    ]
    scale = _millimetres(header)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    zooms = np.abs(header["pixdim"][1:4]) * scale
    if (
        not known
        or not all(
            np.allclose(matrix[:3] * scale, affine[:3], atol=_ROUNDING * spacing.min())
            for matrix in known
        )
        or not np.allclose(zooms[: header["dim"][0]], spacing[: header["dim"][0]], rtol=_ROUNDING)
    ):
        raise InputError(
            "qform, sform and pixdim of its header do not agree, and SimpleITK, which decides "
            "where such an image lies, is not installed",
            remedy="Install SimpleITK",
        )
    return affine
