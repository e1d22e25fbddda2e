"""Reading PNG, JPEG, TIFF, BMP, GIF and PPM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError

# Pillow knows more by their content, of which some run other programs or name other files.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "PPM")
# What a phone's JPEG (MPO) holds behind the picture are previews, no pages.
_PAGED = {"TIFF", "GIF"}
# orientations in which rows and columns change places
_TURNED = {5, 6, 7, 8}
_GREY = {"L", "I", "F", "I;16", "I;16B", "I;16L"}


def read_picture(path: Path, admission: Admission | None = None) -> MedicalImage:
    """Read a picture as grey `[x, y]` or RGB `[x, y, 3]`; several pages as a volume `[x, y, page]`.

    A camera's orientation tag is applied. Transparent parts are shown on black, as no colour is
    known there.

    Args:
        path: the file.
        admission: what it may become, anything by default. Of a label map's palette the indices are
            read in place of the colours, as label maps mean them.

    Raises:
        InputError: not a picture, damaged, too large, or pages of different size or kind.
    """
    admission = admission or Admission()
    with _explained(path), Image.open(path, formats=_FORMATS) as picture:
        grid, count = _grid(picture)
        admission.check(grid.shape, _bytes_a_pixel(picture, count), path)
        pages = [_page(picture, index, admission.as_labels) for index in range(count)]
    voxels = pages[0] if len(pages) == 1 else _volume(pages, path)
    return MedicalImage(voxels, _grid_of(voxels.shape[: len(grid.shape)]), path)


def read_picture_grid(path: Path) -> Grid:
    """The grid of a picture, by its header.

    Raises:
        InputError: as `read_picture`, as far as the header tells.
    """
    with _explained(path), Image.open(path, formats=_FORMATS) as picture:
        return _grid(picture)[0]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    damaged = "Export or copy it again"
    try:
        yield
    except UnidentifiedImageError as error:
        raise InputError("not a picture", path=path, remedy=damaged) from error
    except DecompressionBombError as error:
        raise InputError(str(error), path=path, remedy="Crop or downsample it") from error
    except (InputError, PermissionError, MemoryError):
        raise
    except Exception as error:  # what decoders raise on damaged bytes is past counting
        raise InputError(
            f"the picture is truncated or damaged ({error})", path=path, remedy=damaged
        ) from error


def _grid(picture: Image.Image) -> tuple[Grid, int]:
    """The grid, and how many pages lie on it."""
    count = getattr(picture, "n_frames", 1) if picture.format in _PAGED else 1
    # of TIFF, Pillow tells the size as it will be
    turned = picture.format != "TIFF" and _orientation(picture) in _TURNED
    shape = picture.size[::-1] if turned else picture.size
    return _grid_of((*shape, count) if count > 1 else shape), count


def _grid_of(shape: tuple[int, ...]) -> Grid:
    return Grid(shape=shape, affine=np.eye(4), has_patient_space=False)


def _orientation(picture: Image.Image) -> int:
    # PNG's own method decodes the picture before
    return int(Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1))


def _bytes_a_pixel(picture: Image.Image, count: int) -> float:
    """Memory that decoding takes: of one page its copies, of several the pages and the volume."""
    value = 4 if picture.mode in ("I", "F") else 2 if picture.mode.startswith("I;16") else 1
    channels = 1 if picture.mode in (*_GREY, "1") else 3
    kept = value * channels
    clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    decoding = 20 if clear else 5 + 2 * kept if channels == 3 else 3 * kept
    return 2 * kept + decoding / count


def _page(picture: Image.Image, index: int, indices: bool) -> NDArray[np.generic]:
    if index:
        picture.seek(index)
    page: Image.Image = ImageOps.exif_transpose(picture) if _orientation(picture) != 1 else picture
    if indices and page.mode == "P":
        array = np.asarray(page)
    elif page.mode in ("RGBA", "LA", "PA") or "transparency" in page.info:
        clear = page.convert("RGBA")
        page = Image.alpha_composite(Image.new("RGBA", clear.size, (0, 0, 0, 255)), clear)
        page = page.convert("RGB")
        array = np.asarray(page)
        if (array == array[..., :1]).all():
            array = array[..., 0]
    elif page.mode in _GREY:
        array = np.asarray(page)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    elif page.mode == "1":
        array = np.asarray(page.convert("L"))
    else:
        array = np.asarray(page if page.mode == "RGB" else page.convert("RGB"))
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


def _volume(pages: list[NDArray[np.generic]], path: Path) -> NDArray[np.generic]:
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise InputError(
            f"{len(pages)} pages of different size or kind",
            path=path,
            remedy="Save each page as a picture of its own",
        )
    return np.stack(pages, axis=2)
