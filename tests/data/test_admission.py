"""What a file may take of memory, by its header."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from esp_medsam_app.data import admission
from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.label_values import label_values, looked_up, values_in
from esp_medsam_app.data.reading import read_grid, read_image, read_label_map
from esp_medsam_app.data.trust import files_are_own, own_files
from esp_medsam_app.errors import InputError

SHAPE = (20, 30, 40)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if even little memory were much."""
    monkeypatch.setattr(admission, "LEAST", 1000)
    monkeypatch.setattr("esp_medsam_app.data.label_values.CHUNK", 700)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)), path)
    assert path.stat().st_size * admission.BYTES_A_BYTE < 2 * 2 * np.prod(SHAPE)
    return path


@pytest.mark.usefixtures("strict")
def test_an_image_takes_memory_by_its_file(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="20 x 30 x 40 voxels would take") as caught:
        read_image(file)
    assert "uncompressed" in caught.value.remedy
    plain = tmp_path / "a.nii"
    nib.save(nib.load(file), plain)
    assert read_image(plain).grid.shape == read_grid(file).shape == SHAPE
    with own_files():
        assert read_image(file).grid.shape == SHAPE


@pytest.mark.usefixtures("strict")
def test_a_label_map_takes_memory_by_its_image(file: Path) -> None:
    assert read_label_map(file, Grid(SHAPE, np.eye(4))).voxels.dtype == np.uint8
    with pytest.raises(InputError, match="its image has 20 x 30 x 39"):
        read_label_map(file, Grid((20, 30, 39), np.eye(4)))
    with pytest.raises(InputError, match="would take"):
        read_label_map(file)
    # what was admitted once is read again
    assert read_label_map(file, kept=True).grid.shape == SHAPE


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_labels_of_any_type_are_gathered(kind: type, suffix: str, tmp_path: Path) -> None:
    expected = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    nib.save(nib.Nifti1Image(expected.astype(kind), np.eye(4)), tmp_path / f"a{suffix}")
    found = read_label_map(tmp_path / f"a{suffix}", Grid(SHAPE, np.eye(4))).voxels
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.usefixtures("strict")
def test_a_label_above_255_at_the_end_needs_16_bits() -> None:
    voxels = np.ones(SHAPE)
    voxels[-1, -1, -1] = 256
    found = label_values(voxels, None)
    assert found.dtype == np.uint16
    assert np.array_equal(found, voxels)
    assert values_in(found) == [1, 256]
    for wrong in (-1, 65536, 0.5, np.nan):
        voxels[-1, -1, -1] = wrong
        with pytest.raises(InputError):
            label_values(voxels, None)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("order", ["C", "F", "neither"])
def test_labels_are_looked_up_in_any_order(order: str) -> None:
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    labels = labels[::2] if order == "neither" else labels.copy(order)
    table = np.array([0, 7, 3, 9, 1], np.uint8)
    assert np.array_equal(looked_up(table, labels), table[labels])
    assert values_in(labels) == [0, 1, 2, 3, 4]
    assert values_in(labels.astype(np.int64)) == [0, 1, 2, 3, 4]


def test_trust_ends_with_the_block() -> None:
    assert not files_are_own()
    with own_files():
        assert files_are_own()
    with pytest.raises(ZeroDivisionError), own_files():
        raise ZeroDivisionError
    assert not files_are_own()
