"""Reading images and label maps, whatever their format, with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esp_medsam_app.data.dicom import is_dicom_file, read_dicom
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.itk import read_itk
from esp_medsam_app.data.nifti import read_nifti
from esp_medsam_app.data.pictures import read_picture
from esp_medsam_app.errors import InputError

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd", ".nhdr")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM = (".dcm", ".dicom", ".ima")
_LARGEST_LABEL = 65535


def read_image(path: str | Path) -> MedicalImage:
    """Read an image: a file of any supported format, or the folder of one DICOM series.

    Raises:
        InputError: missing, unknown, damaged or not a still image of two or three dimensions;
            voxels that are not finite.
    """
    return _checked(Path(path), as_labels=False)


def read_label_map(path: str | Path) -> MedicalImage:
    """Read a label map; voxels come as uint8, or uint16 where a label is above 255.

    Raises:
        InputError: as `read_image`, and for colours and values that are no labels.
    """
    image = _checked(Path(path), as_labels=True)
    voxels = image.voxels
    if image.is_rgb:
        if not (voxels == voxels[..., :1]).all():
            raise InputError(
                "colours where label numbers are expected",
                path=image.path,
                remedy="Save the label map as a grey image whose values are the labels' numbers",
            )
        voxels = voxels[..., 0]
    if not np.issubdtype(voxels.dtype, np.integer) and not (voxels == np.rint(voxels)).all():
        raise InputError(
            "fractions where label numbers are expected",
            path=image.path,
            remedy="Save the label map with whole numbers, without interpolation",
        )
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > _LARGEST_LABEL:
        raise InputError(
            f"labels between {low} and {high}; 0 to {_LARGEST_LABEL} can be read",
            path=image.path,
        )
    return MedicalImage(
        voxels=voxels.astype(np.uint8 if high <= 255 else np.uint16),
        grid=image.grid,
        path=image.path,
        dicom_modality=image.dicom_modality,
    )


def is_readable_name(path: str | Path) -> bool:
    """Whether this looks like an image: by its suffix, or by content for DICOM.

    A folder counts if it directly holds DICOM files.
    """
    path = Path(path)
    if path.is_dir():
        files = (file for file in sorted(path.iterdir()) if file.is_file())
        return any(_suffix(file) in DICOM or is_dicom_file(file) for file in files)
    suffix = _suffix(path)
    return suffix in NIFTI + ITK + PICTURES + DICOM or (suffix is None and is_dicom_file(path))


def _suffix(path: Path) -> str | None:
    name = path.name.lower()
    known = NIFTI + ITK + PICTURES + DICOM
    return next((suffix for suffix in known if name.endswith(suffix)), None)


def _checked(path: Path, *, as_labels: bool) -> MedicalImage:
    try:
        image = _read(path, as_labels)
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(
            f"cannot be read ({error.strerror})", path=path, remedy="Check its permissions"
        ) from error
    except MemoryError as error:
        raise InputError(
            "needs more memory than there is", path=path, remedy="Crop or downsample it"
        ) from error
    _check(image, path)
    return image


def _read(path: Path, as_labels: bool) -> MedicalImage:
    if not path.exists():
        raise InputError("there is no such file or folder", path=path, remedy="Check the path")
    if path.is_dir():
        return read_dicom(path)
    if path.stat().st_size == 0:
        raise InputError("the file is empty", path=path, remedy="Export or copy it again")
    suffix = _suffix(path)
    if suffix in NIFTI:
        return read_nifti(path)
    if suffix in ITK:
        return read_itk(path)
    if suffix in PICTURES:
        return read_picture(path, indices=as_labels)
    if suffix in DICOM or is_dicom_file(path):
        return read_dicom(path)
    raise InputError(
        "not a format that can be read",
        path=path,
        remedy="NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG, TIFF and BMP can",
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
    if (
        abs(np.linalg.det(image.grid.affine[:3, :3])) < 1e-12
        or not np.isfinite(image.grid.affine).all()
    ):
        raise InputError(
            "its affine does not say where the voxels lie: spacing of zero or parallel axes",
            path=path,
            remedy="Mend the header or export the image again",
        )
