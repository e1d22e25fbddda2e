"""NIfTI-1 and NIfTI-2, compressed by ISA-L: read in half of zlib's time, written in a tenth."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.formats import LARGEST_RATIO
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.label_values import gathered, parts_along
from esp_medsam_app.errors import InputError

# ISA-L's level; higher ones make label maps no smaller.
COMPRESSION = 1
# Extensions lie before the voxels, and are read as a whole.
_LARGEST_EXTENSIONS = 16 << 20
# Where nibabel scales voxels, it computes in float64.
_SCALING = 20


def read_nifti(path: Path, admission: Admission | None = None) -> MedicalImage:
    """Read a NIfTI file with 2 or 3 dimensions; trailing dimensions of one are dropped.

    Scaled voxels (scl_slope, scl_inter) come as float32, others in their own type, and labels as
    uint8 or uint16.

    Args:
        path: the file.
        admission: what it may become; anything by default.

    Raises:
        InputError: not NIfTI, truncated, 4D, not admitted, or of a type that is no grey value or
            colour.
    """
    admission = admission or Admission()
    with _explained(path):
        image, grid, colour = _opened(path)
        as_labels = admission.as_labels and not colour
        admission.check(grid.shape, _bytes_a_voxel(image, as_labels), path)
        voxels = _labels(image, grid, path) if as_labels else _voxels(image, path)
    if as_labels:
        return MedicalImage(voxels, grid, path)
    if colour:
        voxels = np.stack([voxels[name] for name in ("R", "G", "B")], axis=-1)
        return MedicalImage(voxels.reshape(*grid.shape, 3), grid, path)
    voxels = voxels.reshape(grid.shape)
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32, copy=False)
    return MedicalImage(voxels.astype(voxels.dtype.newbyteorder("="), copy=False), grid, path)


def read_nifti_grid(path: Path) -> Grid:
    """Where the voxels of a NIfTI file lie, by its header.

    Raises:
        InputError: as `read_nifti`, but for the voxels.
    """
    with _explained(path):
        return _opened(path)[1]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    damaged = "Export or copy it again"
    try:
        yield
    except (ImageFileError, HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"not a NIfTI image ({_first_line(error)})", path=path) from error
    except (InputError, PermissionError, MemoryError):
        raise
    except Exception as error:  # what parsers raise on damaged bytes is past counting
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise InputError(
            f"the file is truncated or damaged ({_first_line(error)})", path=path, remedy=damaged
        ) from error


def _opened(path: Path) -> tuple[Any, Grid, bool]:
    """The image, whose voxels are not read yet, its grid, and whether the voxels are colours."""
    _check_begin(path)
    image: Any = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(
            "not a single-file NIfTI image", path=path, remedy="Export or copy it again"
        )
    _check_size(image, path)
    grid, colour = _grid(image, path)
    return image, grid, colour


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
    with _source(image, path) as voxels:
        return np.asanyarray(voxels)


def _labels(image: Any, grid: Grid, path: Path) -> NDArray[Any]:
    """Whole numbers, gathered part by part: many programs write labels with 64 bits."""
    before = (slice(None),) * (len(grid.shape) - 1)
    after = (0,) * (len(image.shape) - len(grid.shape))
    with _source(image, path) as voxels:
        places = ((part, (*before, part, *after)) for part in parts_along(grid.shape))
        parts = ((part, np.asanyarray(voxels[place])) for part, place in places)
        return gathered(parts, grid.shape, path)


@contextmanager
def _source(image: Any, path: Path) -> Iterator[Any]:
    """What gives the voxels, best in the order of the file."""
    if not _is_compressed(path):
        yield image.dataobj
        return
    with igzip.open(path) as file:
        unpacked = type(image).from_file_map({"image": FileHolder(str(path), file)})
        yield unpacked.dataobj
        # only at the end is the checksum compared
        file.read(1)


def _bytes_a_voxel(image: Any, as_labels: bool) -> float:
    """Memory that reading takes; the voxels themselves are there twice when they are handed on."""
    if as_labels:
        return 4
    dtype = image.get_data_dtype()
    if image.dataobj.slope != 1 or image.dataobj.inter != 0:
        return float(dtype.itemsize + _SCALING)
    return float(2 * dtype.itemsize)


def _check_begin(path: Path) -> None:
    """Refuse the header of a pair, and extensions that would fill the memory."""
    try:
        with igzip.open(path) if _is_compressed(path) else path.open("rb") as file:
            begin = file.read(348)
    except Exception:  # damaged: nibabel tells what it makes of it
        return
    if begin[344:347] == b"ni1" or begin[4:7] == b"ni2":
        raise InputError(
            "its voxels lie in another file",
            path=path,
            remedy="Save it as one file (.nii or .nii.gz) that holds header and voxels",
        )
    for order in "<>":
        for size, kind, place in ((348, "f", 108), (540, "q", 168)):
            if len(begin) == 348 and struct.unpack_from(f"{order}i", begin)[0] == size:
                (offset,) = struct.unpack_from(order + kind, begin, place)
                if not offset <= _LARGEST_EXTENSIONS:
                    raise InputError(
                        f"its voxels begin at byte {offset:.0f}: the header is damaged",
                        path=path,
                        remedy="Export or copy it again",
                    )


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
