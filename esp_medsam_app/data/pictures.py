"""Reading PNG, JPEG, TIFF, BMP, GIF and PPM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError

# What a phone's JPEG (MPO) holds behind the picture are previews, no pages.
_PAGED = {"TIFF", "GIF"}
_GREY = {"L", "I", "F", "I;16", "I;16B", "I;16L"}


def read_picture(path: Path, *, indices: bool = False) -> MedicalImage:
    """Read a picture as grey `[x, y]` or RGB `[x, y, 3]`; several pages as a volume `[x, y, page]`.

    A camera's orientation tag is applied. Transparent parts are shown on black, as no colour is
    known there.

    Args:
        path: the file.
        indices: give a palette's indices in place of its colours, as label maps mean them.

    Raises:
        InputError: not a picture, damaged, too large, or pages of different size or kind.
    """
    damaged = "Export or copy it again"
    try:
        with Image.open(path) as picture:
            count = getattr(picture, "n_frames", 1) if picture.format in _PAGED else 1
            pages = [_page(picture, index, indices) for index in range(count)]
    except UnidentifiedImageError as error:
        raise InputError("not a picture", path=path, remedy=damaged) from error
    except DecompressionBombError as error:
        raise InputError(str(error), path=path, remedy="Crop or downsample it") from error
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # what decoders raise on damaged bytes is past counting
        raise InputError(
            f"the picture is truncated or damaged ({error})", path=path, remedy=damaged
        ) from error
    voxels = pages[0] if len(pages) == 1 else _volume(pages, path)
    shape = voxels.shape[:2] if len(pages) == 1 else voxels.shape[:3]
    grid = Grid(shape=shape, affine=np.eye(4), has_patient_space=False)
    return MedicalImage(voxels, grid, path)


def _page(picture: Image.Image, index: int, indices: bool) -> NDArray[np.generic]:
    if index:
        picture.seek(index)
    page: Image.Image = ImageOps.exif_transpose(picture)
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
        array = np.asarray(page.convert("RGB"))
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


def _volume(pages: list[NDArray[np.generic]], path: Path) -> NDArray[np.generic]:
    if len({(page.shape, page.dtype) for page in pages}) > 1:
        raise InputError(
            f"{len(pages)} pages of different size or kind",
            path=path,
            remedy="Save each page as a picture of its own",
        )
    return np.stack(pages, axis=2)
