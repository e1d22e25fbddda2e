"""NIfTI-1 and NIfTI-2, compressed by ISA-L: read in half of zlib's time, written in a tenth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from esp_medsam_app.data.formats import LARGEST_RATIO
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError

# ISA-L's level; higher ones make label maps no smaller.
COMPRESSION = 1


def read_nifti(path: Path) -> MedicalImage:
    """Read a NIfTI file with 2 or 3 dimensions; trailing dimensions of one are dropped.

    Scaled voxels (scl_slope, scl_inter) come as float32, others in their own type.

    Raises:
        InputError: not NIfTI, truncated, 4D or of a type that is no grey value or colour.
    """
    damaged = "Export or copy it again"
    try:
        image: Any = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise InputError("not a single-file NIfTI image", path=path, remedy=damaged)
        _check_size(image, path)
        grid, colour = _grid(image, path)
        voxels = _voxels(image, path)
    except (ImageFileError, HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"not a NIfTI image ({_first_line(error)})", path=path) from error
    except (InputError, PermissionError, MemoryError):
        raise
    except Exception as error:  # what parsers raise on damaged bytes is past counting
        raise InputError(
            f"the file is truncated or damaged ({_first_line(error)})", path=path, remedy=damaged
        ) from error
    if colour:
        voxels = np.stack([voxels[name] for name in ("R", "G", "B")], axis=-1)
        return MedicalImage(voxels.reshape(*grid.shape, 3), grid, path)
    voxels = voxels.reshape(grid.shape)
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32, copy=False)
    return MedicalImage(voxels.astype(voxels.dtype.newbyteorder("="), copy=False), grid, path)


def save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image; compressed where the name ends with .gz, the same bytes for the same image.

    Raises:
        OSError: the file cannot be written.
    """
    if not _is_compressed(path):
        nib.save(image, path)
        return
    with (
        path.open("wb") as file,
        igzip.IGzipFile("", "wb", COMPRESSION, file, mtime=0) as compressed,
    ):
        image.to_file_map({"image": FileHolder(fileobj=compressed)})


def _voxels(image: Any, path: Path) -> NDArray[Any]:
    if not _is_compressed(path):
        return np.asanyarray(image.dataobj)
    with igzip.open(path) as file:
        unpacked = type(image).from_file_map({"image": FileHolder(str(path), file)})
        voxels = np.asanyarray(unpacked.dataobj)
        # only at the end is the checksum compared
        file.read(1)
        return voxels


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _grid(image: Any, path: Path) -> tuple[Grid, bool]:
    shape = tuple(int(extent) for extent in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise InputError(
            f"{len(shape)}D image of {' x '.join(map(str, shape))} voxels; 2D and 3D can be read",
            path=path,
            remedy="Split it, for example into one file a time point",
        )
    dtype = image.get_data_dtype()
    colour = dtype.names is not None
    if (colour and dtype.names[:3] != ("R", "G", "B")) or dtype.kind == "c":
        raise InputError(f"voxels of type {dtype} are neither grey values nor colours", path=path)
    grid = Grid(
        shape=shape,
        affine=np.asarray(image.affine, np.float64),
        has_patient_space=True,
        nifti_header=image.header.copy(),
    )
    return grid, colour


def _check_size(image: Any, path: Path) -> None:
    """Refuse before memory is taken for voxels that the file cannot hold."""
    claimed = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    on_disk = path.stat().st_size
    if claimed > on_disk * (LARGEST_RATIO if _is_compressed(path) else 1):
        raise InputError(
            f"the file is truncated or damaged: {on_disk} bytes cannot hold an image of "
            f"{' x '.join(map(str, image.shape))} voxels",
            path=path,
            remedy="Export or copy it again",
        )


def _first_line(error: BaseException) -> str:
    # nibabel names no file where it reads from a stream
    lines = str(error).strip().splitlines()
    return lines[0].strip().removesuffix(" from") if lines else type(error).__name__
