"""Recognising an image that was renamed, re-encoded, scaled, mirrored or turned.

A slice is averaged down to a small square, whatever its sides are, and high-passed: what is left
are the structures that differ from patient to patient, not the anatomy that all share. The signs
of its lowest cosine coefficients are 64 bits that sort out candidates fast; the correlation of the
small squares decides. Cropping, padding and turns by other than 90 degrees are not recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from esp_medsam_app.modalities import Intensity

SIDE = 32
# Pixels of the small square; finer structure than that is kept.
HIGH_PASS = 2.0
# Below 1, so that the outline of the field of view, the same in all images of a camera, does not
# outweigh what lies within.
POWER = 0.7
# Of 64 bits. Copies re-encoded as JPEG at quality 50 and scaled by 0.6 differ in at most 9.
MOST_BITS_APART = 12
# Such copies correlate by 0.951 and more; other eyes of the same camera reach 0.905.
LEAST_CORRELATION = 0.94
# Pixels of the small square that carry its structure: a lone bright spot, a marker or a table in
# an empty slice look the same in every patient.
FEWEST_PIXELS = 24
_BLOCK = 1 << 22
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is kept of an image to recognise it.

    Attributes:
        digest: SHA-256 of its slices' values, whatever the format and type they were stored in.
        views: small high-passed squares of its slices, int8 `[V, 32, 32]`; slices without
            structure have none.
        keys: indices of the views that stand for the image: of a volume, the slices at a quarter,
            the middle and three quarters.
    """

    digest: bytes
    views: NDArray[np.int8]
    keys: tuple[int, ...]

    @classmethod
    def of(cls, slices: NDArray[np.generic], intensity: Intensity) -> Fingerprint:
        """The fingerprint of `[S, H, W]` or `[S, H, W, 3]`, a slice at a time."""
        count = len(slices)
        quarter = (count - 1) // 4
        # the same slices when their order is reversed
        wanted = {quarter, (count - 1) // 2, count // 2, count - 1 - quarter}
        digest = hashlib.sha256(repr(slices.shape[:3]).encode())
        views: list[NDArray[np.int8]] = []
        keys: list[int] = []
        for index, values in enumerate(slices):
            digest.update(_plain(values).tobytes())
            view = _view(values, intensity)
            if view is not None:
                if index in wanted:
                    keys.append(len(views))
                views.append(view)
        stacked = np.stack(views) if views else np.empty((0, SIDE, SIDE), np.int8)
        return cls(digest.digest(), stacked, tuple(keys))


@dataclass(frozen=True)
class Alike:
    """Two images, by their position in the sequence, that look the same."""

    first: int
    second: int
    correlation: float


def find_alike(prints: Sequence[Fingerprint | None], groups: Sequence[str]) -> list[Alike]:
    """All pairs of images of different groups that look the same, `first` before `second`.

    The keys of each image are compared with all views of those of other groups, in each of the
    eight orientations. Takes some seconds for 5000 pictures.
    """
    owners: list[int] = []
    keys: list[int] = []
    kept: list[NDArray[np.int8]] = []
    for position, one in enumerate(prints):
        if one is None:
            continue
        keys += [len(owners) + key for key in one.keys]
        owners += [position] * len(one.views)
        kept.append(one.views)
    if not owners:
        return []
    views, owner = np.concatenate(kept), np.array(owners)
    _, group = np.unique(np.array(groups), return_inverse=True)
    group_of_view = group[owner]
    codes = _codes(views)
    best: dict[tuple[int, int], float] = {}
    for name in np.unique(group):
        base = np.flatnonzero(group_of_view != name)
        asked = np.array([key for key in keys if group_of_view[key] == name], int)
        for query, other, correlation in _matches(views, codes, asked, base):
            pair = (int(min(owner[query], owner[other])), int(max(owner[query], owner[other])))
            best[pair] = max(best.get(pair, 0.0), correlation)
    return [Alike(*pair, correlation) for pair, correlation in sorted(best.items())]


def _plain(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The same bytes for the same values, whether stored as uint8, int16, float or grey RGB."""
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int32)
    return whole if (whole == values).all() else values.astype(np.float32)


def _view(values: NDArray[np.generic], intensity: Intensity) -> NDArray[np.int8] | None:
    """int8 `[32, 32]`; None without enough structure to tell one image from another."""
    grey = values.astype(np.float32)
    if intensity.kind == "window" and values.dtype != np.uint8:
        # as pictures of such a slice are made
        grey = np.clip(grey, intensity.low, intensity.high)
    if grey.ndim == 3:
        grey = grey @ _GREY
    small = np.asarray(
        Image.fromarray(np.ascontiguousarray(grey)).resize((SIDE, SIDE), Image.Resampling.BOX)
    )
    high = small - gaussian_filter(small, HIGH_PASS, mode="nearest")
    high -= high.mean()
    largest = float(np.abs(high).max())
    # rounding of a constant is no structure
    if largest <= 1e-5 * max(1.0, float(np.abs(small).max())):
        return None
    high /= largest
    squares = np.square(high)
    if squares.sum() ** 2 < FEWEST_PIXELS * np.square(squares).sum():
        return None
    return np.rint(127 * np.sign(high) * np.abs(high) ** POWER).astype(np.int8)


def _orientations(views: NDArray[np.int8]) -> Iterator[NDArray[np.int8]]:
    for mirrored in (views, views[:, :, ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns, axes=(1, 2))


def _codes(views: NDArray[np.int8]) -> NDArray[np.uint64]:
    """The signs of the 8 x 8 lowest cosine coefficients, packed: uint64 `[V]`."""
    packed = []
    for start in range(0, len(views), 4096):
        low = dctn(views[start : start + 4096].astype(np.float32), axes=(1, 2))[:, :8, :8]
        packed.append(np.packbits((low > 0).reshape(len(low), 64), axis=1))
    return np.concatenate(packed).view(np.uint64)[:, 0]


def _bits(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many bits are set in each word."""
    one, two, four = (
        np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
    )
    words = words - ((words >> np.uint64(1)) & one)
    words = (words & two) + ((words >> np.uint64(2)) & two)
    words = (words + (words >> np.uint64(4))) & four
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _unit(views: NDArray[np.int8]) -> NDArray[np.float32]:
    flat = views.reshape(len(views), -1).astype(np.float32)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def _matches(
    views: NDArray[np.int8],
    codes: NDArray[np.uint64],
    asked: NDArray[np.int_],
    base: NDArray[np.int_],
) -> Iterator[tuple[int, int, float]]:
    """`(query, other, correlation)` of views that look the same."""
    if not len(asked) or not len(base):
        return
    step = max(1, _BLOCK // len(base))
    for turned in _orientations(views[asked]):
        turned_codes = _codes(turned)
        for start in range(0, len(asked), step):
            block = turned_codes[start : start + step, np.newaxis]
            rows, columns = np.nonzero(_bits(block ^ codes[base]) <= MOST_BITS_APART)
            for part in range(0, len(rows), 4096):
                row, other = rows[part : part + 4096] + start, base[columns[part : part + 4096]]
                correlation = (_unit(turned[row]) * _unit(views[other])).sum(axis=1)
                for hit in np.flatnonzero(correlation >= LEAST_CORRELATION):
                    yield int(asked[row[hit]]), int(other[hit]), float(correlation[hit])
