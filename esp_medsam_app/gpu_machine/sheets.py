"""Slice caches as archives of compressed sheets: a tenth of their size, at a small loss.

A sheet is some slices of one case and size below each other: one picture in WebP, and one in PNG
for their label maps, which are kept exactly.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.training.slice_cache import INDEX, PIXELS, CachedSlice, SliceCache, index_of

# rows of a sheet at most; WebP ends at 16383
ROWS = 8192
# Slices begin at whole blocks of the compression, so that none shows in the next one.
_BLOCK = 16
_CONTENT = "content.json"
_LAYOUT = 1


def write_sheets(cache: SliceCache, output: Path, *, quality: int, most: int) -> None:
    """Write a cache as an archive, if that is not there yet.

    Args:
        cache: the slices.
        output: the archive.
        quality: of WebP, 1 to 100.
        most: slices of a case, at even distances where it has more.
    """
    origin = f"{cache.origin}/{_LAYOUT}/{quality}/{most}"
    if _origin_of(output) == origin:
        return
    numbers = _chosen(cache, most)
    sheets = list(_sheets(cache, numbers))
    content = {
        "origin": origin,
        "names": cache.case_names,
        "sites": cache.case_sites,
        "slices": [astuple(cache.slices[number]) for number in numbers],
        "sheets": [len(sheet) for sheet in sheets],
    }
    with written_whole(output) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.writestr(_CONTENT, json.dumps(content), zipfile.ZIP_DEFLATED)
        for place, sheet in enumerate(sheets):
            images, labels = zip(*(cache.stored(number) for number in sheet), strict=True)
            picture = np.concatenate([_padded(image) for image in images], axis=1)
            archive.writestr(f"{place}.webp", _webp(picture, quality))
            archive.writestr(f"{place}.png", _png(np.concatenate(labels)))


def read_sheets(archive: Path, folder: Path) -> SliceCache:
    """The cache of an archive in a folder; it is written if it is not there.

    Raises:
        InputError: the archive is damaged.
    """
    origin = _origin_of(archive)
    if origin is None:
        raise InputError("the archive is missing or damaged", path=archive, remedy="Pack again")
    try:
        if SliceCache(folder).origin == origin:
            return SliceCache(folder)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        content = json.loads(opened.read(_CONTENT))
        slices = [CachedSlice(*entry) for entry in content["slices"]]
        written: list[CachedSlice] = []
        with written_whole(folder / PIXELS) as partial, partial.open("wb") as file:
            first = 0
            for place, count in enumerate(content["sheets"]):
                sheet = slices[first : first + count]
                first += count
                picture = _pixels(opened.read(f"{place}.webp"), sheet[0].channels)
                labels = _pixels(opened.read(f"{place}.png"), 1)[0]
                step = -(-sheet[0].height // _BLOCK) * _BLOCK
                for row, entry in enumerate(sheet):
                    written.append(replace(entry, offset=file.tell()))
                    top = row * step
                    file.write(picture[:, top : top + entry.height].tobytes())
                    top = row * entry.height
                    file.write(labels[top : top + entry.height].tobytes())
    index = index_of(written, content["names"], content["sites"], content["origin"])
    with written_whole(folder / INDEX) as partial:
        partial.write_text(json.dumps(index), encoding="utf-8")
    return SliceCache(folder)


def _origin_of(archive: Path) -> str | None:
    try:
        with zipfile.ZipFile(archive) as opened:
            origin: str = json.loads(opened.read(_CONTENT))["origin"]
            return origin
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _chosen(cache: SliceCache, most: int) -> list[int]:
    chosen: list[int] = []
    for labelled, empty in cache.by_case:
        numbers = sorted(labelled + empty)
        places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
        chosen += [numbers[place] for place in places]
    return chosen


def _sheets(cache: SliceCache, numbers: list[int]) -> Iterator[list[int]]:
    """Neighbours of one case and size, as many as one sheet takes."""
    sheet: list[int] = []
    for number in numbers:
        entry = cache.slices[number]
        if sheet:
            first = cache.slices[sheet[0]]
            alike = all(
                getattr(entry, what) == getattr(first, what)
                for what in ("case", "channels", "height", "width")
            )
            if not alike or (len(sheet) + 1) * (entry.height + _BLOCK) > ROWS:
                yield sheet
                sheet = []
        sheet.append(number)
    if sheet:
        yield sheet


def _padded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    missing = -image.shape[1] % _BLOCK
    return np.pad(image, ((0, 0), (0, missing), (0, 0)), mode="edge")


def _webp(picture: NDArray[np.uint8], quality: int) -> bytes:
    shown = picture[0] if len(picture) == 1 else np.ascontiguousarray(np.moveaxis(picture, 0, -1))
    kept = io.BytesIO()
    Image.fromarray(shown).save(kept, "WEBP", quality=quality, method=4)
    return kept.getvalue()


def _png(labels: NDArray[np.uint8]) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(labels).save(kept, "PNG", optimize=True)
    return kept.getvalue()


def _pixels(content: bytes, channels: int) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as opened:
        pixels = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)
