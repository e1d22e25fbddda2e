"""Folders as people copy and export them: doubled files, pictures of a screen among the slices."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset
from support.dicom_phantoms import picture, volume

from esp_medsam_app.data.dicom import read_planes
from esp_medsam_app.data.dicom_parts import parts_of
from esp_medsam_app.data.reading import is_readable_name, read_image
from esp_medsam_app.errors import InputError


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for number, dataset in enumerate(volume(5)):
        dataset.save_as(tmp_path / f"{number}.dcm", write_like_original=False)
    return tmp_path


def capture(series: Path, **values: object) -> FileDataset:
    """A picture of the dose report, in the series of the slices."""
    dataset = picture("OT", colour=True)
    dataset.SeriesInstanceUID = pydicom.dcmread(series / "0.dcm").SeriesInstanceUID
    dataset.Modality = "CT"
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def test_a_copied_file_counts_once(series: Path) -> None:
    whole = read_image(series).voxels
    shutil.copy(series / "3.dcm", series / "3 (1).dcm")
    shutil.copy(series / "3.dcm", series / "z.dcm")
    image = read_image(series)
    assert np.array_equal(image.voxels, whole)
    assert len(read_planes(series).headers) == 5


def test_another_image_of_the_same_uid_is_no_copy(series: Path) -> None:
    """As of an anonymiser that gives all slices one UID: none goes missing."""
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset.save_as(file)
    assert read_image(series).grid.shape[2] == 5
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(series.iterdir())]
    assert [len(part.headers) for part in parts_of(headers).parts] == [5]


def test_a_changed_copy_is_told(series: Path) -> None:
    dataset = pydicom.dcmread(series / "3.dcm")
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(series / "3 (1).dcm")
    with pytest.raises(InputError, match=r"two slices at the same place.*3 \(1\)\.dcm"):
        read_image(series)


def test_a_secondary_capture_is_left_out_and_named(series: Path) -> None:
    whole = read_image(series).voxels
    capture(series).save_as(series / "dose.dcm", write_like_original=False)
    image = read_image(series)
    assert np.array_equal(image.voxels, whole)
    assert "1 secondary captures" in image.warnings[0]
    assert "dose.dcm" in image.warnings[0]
    assert read_planes(series).warnings == image.warnings
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in sorted(series.iterdir())]
    found = parts_of(headers)
    assert [len(part.headers) for part in found.parts] == [5]
    assert len(found.aside) == 1


def test_a_capture_that_comes_first_does_not_hide_the_series(series: Path) -> None:
    capture(series).save_as(series / "0_dose.dcm", write_like_original=False)
    assert is_readable_name(series)
    assert read_image(series).grid.shape[2] == 5


def test_captures_alone_are_images(tmp_path: Path) -> None:
    picture("OT", colour=True).save_as(tmp_path / "a.dcm", write_like_original=False)
    image = read_image(tmp_path)
    assert image.is_rgb
    assert image.warnings == ()


def test_a_capture_with_a_place_is_a_slice(series: Path) -> None:
    """Derived volumes are often stored as secondary captures."""
    for file in list(series.iterdir())[:2]:
        dataset = pydicom.dcmread(file)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.7"
        )
        dataset.save_as(file)
    assert read_image(series).grid.shape[2] == 5
