"""A CT from file to file, by segmenters that are no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from esp_medsam_app.benchmark.volume import measure_volume, write_ct
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_image


class Halves:
    """Label 1 in the upper half; tells every slice."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name

    def segment(self, image: MedicalImage, modality: str, *, on_slice: Any) -> np.ndarray:
        self.calls.append(self.name)
        assert modality == "ct_liver"
        for index in range(image.grid.shape[2]):
            on_slice(index + 1, image.grid.shape[2])
        labels = np.zeros(image.grid.shape, np.uint8)
        labels[:, : image.grid.shape[1] // 2] = 1
        return labels


def test_the_phantom_is_a_ct_with_noise(tmp_path: Path) -> None:
    image = read_image(write_ct(tmp_path, slices=8, side=64))
    assert image.grid.shape == (64, 64, 8)
    assert image.voxels.dtype == np.int16
    assert image.voxels.min() < -900
    assert image.voxels.max() > 300
    air = image.voxels[:4, :4]
    assert 8 < air.std() < 16


def test_ways_take_turns_and_write_what_they_found(tmp_path: Path) -> None:
    calls: list[str] = []
    ways: Any = [(name, Halves(calls, name)) for name in ("plain", "fast")]
    steps: list[tuple[int, int]] = []
    report = measure_volume(
        ways, "ct_liver", tmp_path, slices=6, side=32, rounds=2,
        on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    assert calls == ["plain", "fast", "fast", "plain"]
    assert steps == [(done, 24) for done in range(1, 25)]
    assert report.shape == (32, 32, 6)
    assert report.megabytes == pytest.approx((tmp_path / "ct.nii.gz").stat().st_size / 1e6)
    plain, fast = report.figures
    assert (plain.name, fast.name, plain.times_plain) == ("plain", "fast", 1)
    for figures in report.figures:
        parts = figures.reading + figures.segmenting + figures.writing
        assert min(figures.seconds) == pytest.approx(parts)
        assert figures.slices_per_second == pytest.approx(6 / parts)
    written: Any = nib.load(tmp_path / "fast.nii.gz")
    assert np.asarray(written.dataobj)[:, :16].all()
