"""Reading PNG, JPEG, TIFF, BMP, GIF and PPM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from esp_medsam_app.data.admission import Admission
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.tiff import TiffLayout, layout_of, read_deep
from esp_medsam_app.data.turns import TAG, UPRIGHT, Turn, after, flipped_by_itk, turn_of
from esp_medsam_app.errors import InputError

# Pillow knows more by their content, of which some run other programs or name other files.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "PPM")
# What a phone's JPEG (MPO) holds behind the picture are previews, no pages.
_PAGED = {"TIFF", "GIF"}
# How TIFF and BigTIFF begin, in either byte order.
_TIFF = {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
_GREY = {"L", "I", "F", "I;16", "I;16B", "I;16L"}


def read_picture(path: Path, admission: Admission | None = None) -> MedicalImage:
    """Read a picture as grey `[x, y]` or RGB `[x, y, 3]`; several pages as a volume `[x, y, page]`.

    Voxels lie as ITK loads them; the grid says how a camera's orientation tag turns them upright.
    Transparent parts are shown on black, as no colour is known there.

    Args:
        path: the file.
        admission: what it may become, anything by default. Of a label map's palette the indices are
            read in place of the colours, as label maps mean them.

    Raises:
        InputError: not a picture, damaged, too large, or pages of different size or kind.
    """
    with _explained(path):
        pages, turn = _pages(path, admission or Admission())
    voxels = pages[0] if len(pages) == 1 else _volume(pages, path)
    shape = voxels.shape[:2] if len(pages) == 1 else voxels.shape[:3]
    return MedicalImage(voxels, _grid_of(shape, turn), path)


def read_picture_grid(path: Path) -> Grid:
    """The grid of a picture, by its header.

    Raises:
        InputError: as `read_picture`, as far as the header tells.
    """
    with _explained(path):
        layout = _layout(path)
        if layout:
            turn = _one_turn(layout)
            shape = _shape(layout.size, len(layout.pages))
            return _grid_of(shape, after(flipped_by_itk(turn), turn))
        with Image.open(path, formats=_FORMATS) as picture:
            return _grid_of(_shape(picture.size, _count(picture)), _told_turn(picture))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    damaged = "Export or copy it again"
    try:
        yield
    except UnidentifiedImageError as error:
        raise InputError("not a picture", path=path, remedy=damaged) from error
    except DecompressionBombError as error:
        raise InputError(str(error), path=path, remedy="Crop or downsample it") from error
    except (PermissionError, MemoryError):
        raise
    except InputError as error:
        raise InputError(error.problem, path=path, remedy=error.remedy) from error
    except Exception as error:  # what decoders raise on damaged bytes is past counting
        raise InputError(
            f"the picture is truncated or damaged ({error})", path=path, remedy=damaged
        ) from error


def _layout(path: Path) -> TiffLayout | None:
    with path.open("rb") as file:
        is_tiff = file.read(4) in _TIFF
    return layout_of(path) if is_tiff else None


def _pages(path: Path, admission: Admission) -> tuple[list[NDArray[Any]], Turn]:
    """The pages `[x, y(, 3)]` as ITK loads them, and how they are turned upright."""
    layout = _layout(path)
    turn = _one_turn(layout) if layout else UPRIGHT
    flips = flipped_by_itk(turn)
    if layout:
        count = len(layout.pages)
        needed = 2 * layout.bytes_a_pixel + (4 * layout.bytes_a_pixel + 16) / count
        admission.check(_shape(layout.size, count), needed, path)
    if layout and layout.deep:
        pages = [_columns_first(flips.apply(page)) for page in read_deep(path, layout)]
        return pages, after(flips, turn)
    # of a name PIL maps a file to memory, and a turned TIFF with rows and columns confused
    with path.open("rb") as file, Image.open(file, formats=_FORMATS) as picture:
        if layout:
            # PIL has turned them upright
            pages = [
                _columns_first(flips.apply(turn.undo(_page(picture, index, admission.as_labels))))
                for index in layout.pages
            ]
            return pages, after(flips, turn)
        count = _count(picture)
        admission.check(_shape(picture.size, count), _bytes_a_pixel(picture, count), path)
        turn = _told_turn(picture)
        pages = [_page(picture, index, admission.as_labels) for index in range(count)]
        return [_columns_first(page) for page in pages], turn


def _count(picture: Image.Image) -> int:
    return getattr(picture, "n_frames", 1) if picture.format in _PAGED else 1


def _told_turn(picture: Image.Image) -> Turn:
    # the tag of a TIFF whose structure is damaged is as doubtful as the rest
    if picture.format == "TIFF":
        return UPRIGHT
    # PNG's own method decodes the picture before
    return turn_of(Image.Image.getexif(picture).get(TAG))


def _shape(size: tuple[int, int], count: int) -> tuple[int, ...]:
    return (*size, count) if count > 1 else size


def _grid_of(shape: tuple[int, ...], turn: Turn) -> Grid:
    return Grid(shape=shape, affine=np.eye(4), has_patient_space=False, upright=turn)


def _bytes_a_pixel(picture: Image.Image, count: int) -> float:
    """Memory that decoding takes: of one page its copies, of several the pages and the volume."""
    value = 4 if picture.mode in ("I", "F") else 2 if picture.mode.startswith("I;16") else 1
    channels = 1 if picture.mode in (*_GREY, "1") else 3
    kept = value * channels
    clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    decoding = 20 if clear else 5 + 2 * kept if channels == 3 else 3 * kept
    return 2 * kept + decoding / count


def _one_turn(layout: TiffLayout) -> Turn:
    if len(set(layout.turns)) > 1:
        raise InputError(
            f"its {len(layout.pages)} pages are turned differently by their orientation tags",
            remedy="Save each page as a picture of its own",
        )
    return layout.turns[0]


def _columns_first(page: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.swapaxes(page, 0, 1))


def _page(picture: Image.Image, index: int, indices: bool) -> NDArray[Any]:
    """`[rows, columns(, 3)]`, as PIL loads it: of TIFF upright, of others as stored."""
    if index:
        picture.seek(index)
    # only then has PIL turned a TIFF
    picture.load()
    page: Image.Image = picture
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
    return array


def _volume(pages: list[NDArray[Any]], path: Path) -> NDArray[Any]:
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise InputError(
            f"{len(pages)} pages of different size or kind",
            path=path,
            remedy="Save each page as a picture of its own",
        )
    return np.stack(pages, axis=2)
