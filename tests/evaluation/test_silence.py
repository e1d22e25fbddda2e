"""Counting what is marked where the structure is absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.evaluation.silence import Silence, measure_silence


def volume(marks: list[int], side: int = 40) -> np.ndarray:
    """Slices along the last axis with so many voxels marked each."""
    labels = np.zeros((side, side, len(marks)), np.uint8)
    for index, count in enumerate(marks):
        labels[..., index].reshape(-1)[:count] = 1
    return labels


@pytest.fixture
def grid() -> Grid:
    return Grid(shape=(40, 40, 4), affine=np.diag([1.0, 1.0, 3.0, 1.0]))


def test_a_thousandth_of_the_pixels_is_let_pass(grid: Grid) -> None:
    # 1.6 pixels are a thousandth of 1600
    assert Silence.of(volume([0, 1, 2, 900]), grid) == Silence(4, 2)


def test_only_slices_without_reference_count(grid: Grid) -> None:
    reference = volume([5, 0, 0, 0])
    assert Silence.of(volume([0, 50, 0, 50]), grid, reference) == Silence(3, 2)
    assert Silence.of(volume([0, 0, 0, 0]), grid, volume([1, 1, 1, 1])) == Silence(0, 0)


def test_share_and_interval() -> None:
    assert Silence().share is None
    assert Silence().ci95 is None
    some = Silence(70, 2) + Silence(30, 3)
    assert some.share == 0.05
    low, high = some.ci95 or (1, 0)
    # Wilson's interval of 5 of 100
    assert (low, high) == (pytest.approx(0.0215, abs=1e-3), pytest.approx(0.1118, abs=1e-3))
    assert Silence(50, 0).ci95 == (0.0, pytest.approx(0.0713, abs=1e-3))


def test_images_without_the_structure(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(np.full((20, 20), 50 * index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")

    def predict(image: MedicalImage) -> np.ndarray:
        return (image.voxels > 60).astype(np.uint8)

    failed: list[Path] = []
    images = sorted(tmp_path.iterdir())
    found = measure_silence(images, predict, on_failure=lambda path, error: failed.append(path))
    assert found == Silence(3, 1)
    assert [path.name for path in failed] == ["3.png"]
    with pytest.raises((EspMedSamError, InputError)):
        measure_silence(images, predict)
