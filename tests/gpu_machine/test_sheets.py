"""Slices that are compressed for a journey: labels exactly, images nearly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.sheets import read_sheets, write_sheets
from esp_medsam_app.training.slice_cache import INDEX, PIXELS, CachedSlice, SliceCache, index_of


@pytest.fixture
def cache(tmp_path: Path) -> SliceCache:
    """A grey volume of five slices, two pictures in colour, of odd sizes."""
    folder = tmp_path / "cache"
    folder.mkdir()
    rng = np.random.default_rng(0)
    slices = []
    with (folder / PIXELS).open("wb") as file:
        for case, channels, shape in [(0, 1, (37, 50))] * 5 + [(1, 3, (40, 31)), (2, 3, (64, 64))]:
            coarse = rng.integers(0, 256, (channels, 4, 4))
            image = np.kron(coarse, np.ones((1, 16, 16)))[:, : shape[0], : shape[1]]
            image = np.pad(
                image, [(0, 0), *((0, n - m) for n, m in zip(shape, image.shape[1:], strict=True))]
            )
            labels = (rng.random(shape) < 0.3) * rng.integers(0, 14, shape)
            if not slices:
                labels[:] = 0
            offset = file.tell()
            file.write(image.astype(np.uint8).tobytes())
            file.write(labels.astype(np.uint8).tobytes())
            slices.append(CachedSlice(case, channels, *shape, offset, bool(labels.any()), 80, 90))
    index = index_of(slices, ["a", "b", "c"], ["x", "x", "y"], "origin")
    (folder / INDEX).write_text(json.dumps(index))
    return SliceCache(folder)


def test_slices_come_back(cache: SliceCache, tmp_path: Path) -> None:
    archive = tmp_path / "sheets.zip"
    write_sheets(cache, archive, quality=80, most=99)
    found = read_sheets(archive, tmp_path / "read")
    assert (found.case_names, found.case_sites) == (cache.case_names, cache.case_sites)
    assert found.by_case == cache.by_case
    assert found.empty == [0]
    for number in range(len(cache)):
        image, labels = found.stored(number)
        before, truth = cache.stored(number)
        assert np.array_equal(labels, truth)
        assert found.extents(number) == (80, 90)
        assert image.shape == before.shape
        assert np.abs(image.astype(float) - before).mean() < 12


def test_few_slices_of_a_volume_are_kept_and_all_pictures(
    cache: SliceCache, tmp_path: Path
) -> None:
    archive = tmp_path / "sheets.zip"
    write_sheets(cache, archive, quality=80, most=3)
    found = read_sheets(archive, tmp_path / "read")
    assert [len(labelled) + len(empty) for labelled, empty in found.by_case] == [3, 1, 1]
    # the first and the last one, and one between them
    assert np.array_equal(found.stored(2)[1], cache.stored(4)[1])


def test_what_is_written_already_is_not_written_again(cache: SliceCache, tmp_path: Path) -> None:
    archive, folder = tmp_path / "sheets.zip", tmp_path / "read"
    write_sheets(cache, archive, quality=80, most=9)
    read_sheets(archive, folder)
    times = [file.stat().st_mtime_ns for file in (archive, folder / PIXELS)]
    write_sheets(cache, archive, quality=80, most=9)
    read_sheets(archive, folder)
    assert times == [file.stat().st_mtime_ns for file in (archive, folder / PIXELS)]
    write_sheets(cache, archive, quality=50, most=9)
    read_sheets(archive, folder)
    assert times != [file.stat().st_mtime_ns for file in (archive, folder / PIXELS)]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "sheets.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"sheets\.zip: the archive is missing or damaged"):
        read_sheets(tmp_path / "sheets.zip", tmp_path / "read")
