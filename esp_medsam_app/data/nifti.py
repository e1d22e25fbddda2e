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
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.formats import LARGEST_RATIO
from esp_medsam_app.data.gzip_stream import GzipStream, begins_as_gzip
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.label_values import gathered, parts_along
from esp_medsam_app.data.nifti_grid import affine_of
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
    uint8 or uint16. Whether the file is compressed is told by its first bytes, not by its name. The
    image lies where ITK puts it.

    Args:
        path: the file.
        admission: what it may become; anything by default.

    Raises:
        InputError: not NIfTI, truncated, 4D, not admitted, or of a type that is no grey value or
            colour.
    """
    admission = admission or Admission()
    with _explained(path):
        with _opened(path) as file:
            header, shape, colour = _described(file, path)
            as_labels = admission.as_labels and not colour
            admission.check(shape, _bytes_a_voxel(file, header, as_labels), path)
            voxels = _labels(file, header, shape, path) if as_labels else _voxels(file, header)
            if isinstance(file, GzipStream):
                file.finish()
        affine, warning = affine_of(header, shape)
    grid = Grid(shape, affine, nifti_header=header)
    warnings = (warning,) if warning else ()
    if colour:
        voxels = np.stack([voxels[name] for name in ("R", "G", "B")], axis=-1)
        return MedicalImage(voxels.reshape(*shape, 3), grid, path, warnings=warnings)
    voxels = voxels.reshape(shape)
    if voxels.dtype.kind == "f":
        voxels = voxels.astype(np.float32, copy=False)
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    return MedicalImage(voxels, grid, path, warnings=warnings)


def read_nifti_grid(path: Path) -> Grid:
    """Where the voxels of a NIfTI file lie, by its header.

    Raises:
        InputError: as `read_nifti`, but for the voxels.
    """
    with _explained(path):
        with _opened(path) as file:
            header, shape, _ = _described(file, path)
        return Grid(shape, affine_of(header, shape)[0], nifti_header=header)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    damaged = "Export or copy it again"
    try:
        yield
    except (ImageFileError, HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(
            f"not a NIfTI image ({_first_line(error)})", path=path, remedy=damaged
        ) from error
    except (PermissionError, MemoryError):
        raise
    except InputError as error:
        raise InputError(error.problem, path=path, remedy=error.remedy) from error
    except Exception as error:  # what parsers raise on damaged bytes is past counting
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryError from error
        raise InputError(
            f"the file is truncated or damaged ({_first_line(error)})", path=path, remedy=damaged
        ) from error


def _opened(path: Path) -> Any:
    return GzipStream(path) if begins_as_gzip(path) else path.open("rb")


def _described(file: Any, path: Path) -> tuple[Any, tuple[int, ...], bool]:
    """The header, the extents, and whether the voxels are colours."""
    header = _header(file, path)
    _check_size(header, path, isinstance(file, GzipStream))
    return header, *_kind(header, path)


def save_nifti(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image; compressed where the name ends with .gz, the same bytes for the same image.

    Raises:
        OSError: the file cannot be written.
    """
    if not path.name.lower().endswith(".gz"):
        nib.save(image, path)
        return
    with (
        path.open("wb") as file,
        igzip.IGzipFile("", "wb", COMPRESSION, file, mtime=0) as compressed,
    ):
        image.to_file_map({"image": FileHolder(fileobj=compressed)})


def _header(file: Any, path: Path) -> Any:
    """The header of a single file, NIfTI-1 or NIfTI-2 by its first number."""
    begin = file.read(176)
    _check_offset(begin, path)
    size = begin[:4]
    file.seek(0)
    second = (540).to_bytes(4, "little"), (540).to_bytes(4, "big")
    kind = nib.Nifti2Header if size in second else nib.Nifti1Header
    try:
        header = kind.from_fileobj(file)
    except WrapStructError as error:
        raise HeaderDataError("it is shorter than a header") from error
    if not bytes(header["magic"]).startswith(b"n+"):
        raise InputError(
            "not a single-file NIfTI image",
            path=path,
            remedy="Convert the pair of header and image to one .nii or .nii.gz file",
        )
    return header


def _voxels(file: Any, header: Any) -> NDArray[Any]:
    return np.asanyarray(ArrayProxy(file, header))


def _labels(file: Any, header: Any, shape: tuple[int, ...], path: Path) -> NDArray[Any]:
    """Whole numbers, gathered part by part: many programs write labels with 64 bits."""
    voxels = ArrayProxy(file, header)
    before = (slice(None),) * (len(shape) - 1)
    after = (0,) * (len(voxels.shape) - len(shape))
    places = ((part, (*before, part, *after)) for part in parts_along(shape))
    parts = ((part, np.asanyarray(voxels[place])) for part, place in places)
    return gathered(parts, shape, path)


def _bytes_a_voxel(file: Any, header: Any, as_labels: bool) -> float:
    """Memory that reading takes; the voxels themselves are there twice when they are handed on."""
    if as_labels:
        return 4
    item = float(header.get_data_dtype().itemsize)
    voxels = ArrayProxy(file, header)
    return item + _SCALING if (voxels.slope, voxels.inter) != (1, 0) else 2 * item


def _check_offset(begin: bytes, path: Path) -> None:
    """Refuse before extensions are read that fill the memory."""
    for order in "<>":
        for size, kind, place in ((348, "f", 108), (540, "q", 168)):
            if len(begin) == 176 and struct.unpack_from(f"{order}i", begin)[0] == size:
                (offset,) = struct.unpack_from(order + kind, begin, place)
                if not offset <= _LARGEST_EXTENSIONS:
                    raise InputError(
                        f"its voxels begin at byte {offset:.0f}: the header is damaged",
                        path=path,
                        remedy="Export or copy it again",
                    )


def _kind(header: Any, path: Path) -> tuple[tuple[int, ...], bool]:
    """The extents, and whether the voxels are colours."""
    shape = tuple(int(extent) for extent in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise InputError(
            f"{len(shape)}D image of {' x '.join(map(str, shape))} voxels; 2D and 3D can be read",
            path=path,
            remedy="Split it, for example into one file a time point",
        )
    dtype = header.get_data_dtype()
    colour = dtype.names is not None
    if (colour and dtype.names[:3] != ("R", "G", "B")) or dtype.kind == "c":
        raise InputError(
            f"voxels of type {dtype} are neither grey values nor colours",
            path=path,
            remedy="Save it with real numbers or RGB colours, such as the magnitude",
        )
    return shape, colour


def _check_size(header: Any, path: Path, compressed: bool) -> None:
    """Refuse before memory is taken for voxels that the file cannot hold."""
    shape = header.get_data_shape()
    claimed = int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
    on_disk = path.stat().st_size
    if claimed > on_disk * (LARGEST_RATIO if compressed else 1):
        raise InputError(
            f"the file is truncated or damaged: {on_disk} bytes cannot hold an image of "
            f"{' x '.join(map(str, shape))} voxels",
            path=path,
            remedy="Export or copy it again",
        )


def _first_line(error: BaseException) -> str:
    # nibabel names no file where it reads from a stream
    lines = str(error).strip().splitlines()
    return lines[0].strip().removesuffix(" from") if lines else type(error).__name__
