"""What TIFF holds beyond 8 bits, by tifffile: deep integers, fractions, pyramids, WhiteIsZero."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import DecompressionBombError

from esp_medsam_app.data.formats import LARGEST_RATIO
from esp_medsam_app.data.turns import TAG, UPRIGHT, Turn, turn_of
from esp_medsam_app.errors import InputError

# Bits of NewSubfileType: a smaller copy of another page, and a mask of its transparent parts.
_REDUCED, _MASK = 1, 4
# PhotometricInterpretation of what is grey or has colours of its own.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
# So many pixels may a level of a pyramid be off the first one's proportions.
_ROUNDED = 2.0
# PIL's own limit, above which it refuses a picture.
_MOST_OVER_LIMIT = 2


@dataclass(frozen=True)
class TiffLayout:
    """What a TIFF file is made of.

    Attributes:
        pages: indices of its pages, without smaller copies of a page.
        deep: its samples are no bytes or bits, and `read_deep` is to read them.
        turns: what their orientation tags ask for.
        size: of the largest page, columns and rows as stored.
        bytes_a_pixel: of the widest page's samples.
    """

    pages: list[int]
    deep: bool
    turns: list[Turn]
    size: tuple[int, int]
    bytes_a_pixel: int


def layout_of(path: Path) -> TiffLayout | None:
    """What a TIFF file is made of; None where its structure is damaged."""
    import tifffile

    # what is wrong with a tag it prints, and goes on
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with tifffile.TiffFile(path) as file:
            pages = [file.pages[index] for index in range(len(file.pages))]
            kept = [
                index
                for index, page in enumerate(pages)
                if not int(page.subfiletype) & (_REDUCED | _MASK)
            ] or [0]
            if _is_pyramid([pages[index] for index in kept]):
                kept = kept[:1]
            first = pages[kept[0]]
            photometric = int(first.photometric)
            deep = (
                first.dtype is not None
                and first.dtype not in (np.uint8, np.bool_)
                and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
            )
            chosen = [pages[index] for index in kept]
            turns = [_turn(page) for page in chosen]
            size = (
                max(int(page.imagewidth) for page in chosen),
                max(int(page.imagelength) for page in chosen),
            )
            width = max(
                int(page.samplesperpixel) * (page.dtype.itemsize if page.dtype is not None else 1)
                for page in chosen
            )
            return TiffLayout(kept, deep, turns, size, width)
    except Exception:  # damaged: PIL tells what it makes of it
        return None


def read_deep(path: Path, layout: TiffLayout) -> list[NDArray[Any]]:
    """The pages as stored, `[rows, columns]` with their values, or RGB `[rows, columns, 3]` uint8.

    WhiteIsZero is inverted within what can be stored, so that bright is what looks bright. Deep
    colours become bytes: of integers the upper eight bits, fractions of one times 255.

    Raises:
        InputError: too large, truncated, a compression that cannot be read here, or samples that
            are neither grey nor colours.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        return [_page(file.pages[index], path) for index in layout.pages]


def _page(page: Any, path: Path) -> NDArray[Any]:
    pixels = int(page.imagewidth) * int(page.imagelength)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > _MOST_OVER_LIMIT * limit:
        raise DecompressionBombError(
            f"{page.imagewidth} x {page.imagelength} pixels are more than "
            f"{_MOST_OVER_LIMIT * limit}, the most that are read"
        )
    if page.nbytes > path.stat().st_size * LARGEST_RATIO:
        raise InputError(
            f"the picture is truncated or damaged: the file cannot hold {page.imagewidth} x "
            f"{page.imagelength} pixels",
            path=path,
            remedy="Export or copy it again",
        )
    try:
        array = np.asarray(page.asarray())
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        array = _by_itk(page, path)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if page.axes.startswith("S"):
        array = np.moveaxis(array, 0, -1)
    samples = int(page.samplesperpixel)
    if int(page.photometric) == _RGB and samples >= 3:
        return _bytes_of(array[..., :3], int(_first(page.bitspersample)), path)
    # a second sample is the opacity
    if array.ndim == 3 and samples == 2:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise InputError(
            f"{samples} values of type {array.dtype} in each pixel are neither grey nor colours",
            path=path,
            remedy="Save one channel in each file",
        )
    if int(page.photometric) == _WHITE_IS_ZERO:
        array = _inverted(array, int(_first(page.bitspersample)))
    return array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array


def _by_itk(page: Any, path: Path) -> NDArray[Any]:
    """A page in a compression that tifffile lacks; libtiff, which ITK has, knows the usual ones."""
    import SimpleITK as sitk

    plain = len(page.parent.pages) == 1 and _turn(page) == UPRIGHT
    try:
        if plain:
            return np.asarray(
                sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="TIFFImageIO"))
            )
    except RuntimeError:
        pass
    name = getattr(page.compression, "name", str(page.compression))
    raise InputError(
        f"its {page.dtype} pixels are compressed by {name}, which cannot be read here",
        path=path,
        remedy="Save it without compression, or with Deflate",
    )


def _turn(page: Any) -> Turn:
    tag = page.tags.get(TAG)
    return turn_of(int(tag.value)) if tag else UPRIGHT


def _is_pyramid(pages: list[Any]) -> bool:
    """Whether each page is a smaller copy of the first, as whole-slide scanners store them."""
    sizes = [(int(page.imagewidth), int(page.imagelength)) for page in pages]
    (width, height) = sizes[0]
    return len(sizes) > 1 and all(
        before[0] > size[0]
        and before[1] > size[1]
        and abs(size[0] * height / width - size[1]) <= _ROUNDED
        for before, size in pairwise(sizes)
    )


def _inverted(array: NDArray[Any], bits: int) -> NDArray[Any]:
    if array.dtype.kind == "u":
        return np.subtract(array.dtype.type(2**bits - 1), array)
    if array.dtype.kind == "i":
        return np.invert(array)
    return np.subtract(array.max() + array.min(), array)


def _bytes_of(colours: NDArray[Any], bits: int, path: Path) -> NDArray[np.uint8]:
    if colours.dtype.kind == "u":
        return (colours >> max(0, bits - 8)).astype(np.uint8)
    low, high = float(colours.min()), float(colours.max())
    # by convention fractions of one; some programs keep the range of bytes or of 16 bits
    top = next((top for top in (1.0, 255.0, 65535.0) if high <= top), None)
    if colours.dtype.kind == "f" and low >= 0 and top is not None:
        return np.rint(colours.astype(np.float64) * (255.0 / top)).astype(np.uint8)
    raise InputError(
        f"colours of type {colours.dtype} between {low:g} and {high:g} have no meaning here",
        path=path,
        remedy="Save the colours with 8 or 16 bits, or as fractions between 0 and 1",
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value
