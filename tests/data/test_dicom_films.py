"""Multi-frame images and pictures that place no frame by itself: where ITK puts them, or told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset
from support.dicom_phantoms import ROWS, oblique, volume

from esp_medsam_app.data.dicom import read_planes
from esp_medsam_app.data.dicom_seg_writing import Concept, Origin, Segment, segmentation_of
from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.names import label_map_suffix
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import InputError

COUNT = 5
CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "US": "1.2.840.10008.5.1.4.1.1.3.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
}


def film(modality: str, count: int = COUNT, **values: Any) -> FileDataset:
    """A classic multi-frame image with one position; None takes an attribute away."""
    dataset = volume(1, orientation=oblique())[0]
    dataset.Modality = modality
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CLASSES[modality]
    if count > 1:
        dataset.NumberOfFrames = count
        dataset.PixelData = np.arange(count * ROWS * dataset.Columns, dtype="<i2").tobytes()
    for name, value in values.items():
        if value is None:
            dataset.pop(name, None)
        else:
            setattr(dataset, name, value)
    return dataset


def saved(dataset: FileDataset, folder: Path) -> Path:
    path = folder / "film.dcm"
    dataset.save_as(path, write_like_original=False)
    return path


def corners(image: sitk.Image) -> np.ndarray:
    ends = itertools.product(*((0.0, n - 1.0) for n in image.GetSize()))
    return np.array([image.TransformContinuousIndexToPhysicalPoint(end) for end in ends])


def check_on_itks_grid(path: Path) -> Grid:
    image, expected = read_image(path), sitk.ReadImage(str(path))
    for suffix in (".nrrd", ".nii.gz"):
        target = path.with_name(f"labels{suffix}")
        labels = (np.arange(np.prod(image.grid.shape)) % 200).astype(np.uint8)
        labels = labels.reshape(image.grid.shape)
        found = sitk.ReadImage(str(write_label_map(target, labels, image.grid)))
        assert found.GetSize() == expected.GetSize()
        np.testing.assert_allclose(corners(found), corners(expected), atol=1e-3)
        assert np.array_equal(read_label_map(target, image.grid).voxels, labels)
    stored = sitk.GetArrayFromImage(expected).T.reshape(image.grid.shape)
    assert np.array_equal(image.voxels, stored)
    return image.grid


@pytest.mark.parametrize("between", [2.5, -2.5])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_stack_of_slices_lies_where_itk_puts_it(
    modality: str, between: float, tmp_path: Path
) -> None:
    path = saved(film(modality, SpacingBetweenSlices=between), tmp_path)
    grid = check_on_itks_grid(path)
    assert grid.has_patient_space
    assert grid.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert read_image(path).warnings == ()


def test_a_stack_has_no_dicom_segmentation(tmp_path: Path) -> None:
    """It would have to refer to frames by their places, which the image does not list."""
    planes = read_planes(saved(film("CT", SpacingBetweenSlices=2.5), tmp_path))
    tissue = Concept("85756007", "SCT", "Tissue")
    segments = [Segment("a", tissue, tissue, (1, 2, 3))]
    labels = np.zeros(planes.grid.shape, np.uint8)
    with pytest.raises(InputError, match=r"classic multi-frame.*Take the label map as \.nii"):
        segmentation_of(labels, planes, segments, Origin(), description="")


@pytest.mark.parametrize("between", [4.0, -4.0])
def test_slices_of_a_gamma_camera(between: float, tmp_path: Path) -> None:
    """Their place is the detector's."""
    detector = Dataset()
    detector.ImagePositionPatient = [-9, 8, 7]
    detector.ImageOrientationPatient = list(oblique())
    slices = film(
        "NM",
        SpacingBetweenSlices=between,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        DetectorInformationSequence=[detector],
        SliceVector=list(range(1, COUNT + 1)),
    )
    grid = check_on_itks_grid(saved(slices, tmp_path))
    assert grid.has_patient_space
    slices.PhaseVector = [1, 1, 1, 2, 2]
    path = saved(slices, tmp_path)
    assert not check_on_itks_grid(path).has_patient_space
    assert "differ in more than their slice" in read_image(path).warnings[0]
    del slices.PhaseVector
    slices.SliceVector = [1, 2, 3, 1, 2]
    assert "not in the order" in read_image(saved(slices, tmp_path)).warnings[0]


@pytest.mark.parametrize(
    ("modality", "values", "reason"),
    [
        ("CT", {"SpacingBetweenSlices": None}, "no SpacingBetweenSlices"),
        ("CT", {"PixelSpacing": None}, "no PixelSpacing"),
        ("MR", {"FrameTime": "33"}, "moments of a film"),
        ("XA", {}, "moments of a film"),
        ("RF", {}, "moments of a film"),
        ("CT", {"ImagePositionPatient": None}, "no position"),
        ("US", {"FrameTime": "33"}, "moments of a film"),
        ("NM", {}, "no position"),
    ],
)
def test_a_place_that_is_not_known_is_told(
    modality: str, values: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    if modality == "NM":
        # its position is not the image's
        values = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    path = saved(film(modality, **{"SpacingBetweenSlices": 2.5, **values}), tmp_path)
    assert not check_on_itks_grid(path).has_patient_space
    (warning,) = read_image(path).warnings
    assert reason in warning
    assert read_planes(path).warnings == (warning,)


def test_films_without_a_place_are_nothing_to_warn_of(tmp_path: Path) -> None:
    values = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "FrameTime": "33"}
    path = saved(film("US", **values), tmp_path)
    assert not check_on_itks_grid(path).has_patient_space
    assert read_image(path).warnings == ()


def test_a_slice_without_pixel_spacing(tmp_path: Path) -> None:
    path = saved(film("CT", 1, PixelSpacing=None, ImagerPixelSpacing=[0.1, 0.1]), tmp_path)
    grid = check_on_itks_grid(path)
    assert not grid.has_patient_space
    assert grid.shape == (12, 10)
    # a PNG has no place
    assert label_map_suffix(grid) == ".nii.gz"
    assert "no PixelSpacing" in read_image(path).warnings[0]


def test_a_series_without_pixel_spacing(tmp_path: Path) -> None:
    for number, dataset in enumerate(volume(4)):
        if number == 2:
            del dataset.PixelSpacing
        dataset.save_as(tmp_path / f"{number}.dcm", write_like_original=False)
    with pytest.raises(InputError, match=r"2\.dcm has no PixelSpacing.*Export the series"):
        read_image(tmp_path)


def test_an_x_ray_keeps_its_detectors_pixel_size(tmp_path: Path) -> None:
    values = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "PixelSpacing": None}
    path = saved(film("DX", 1, ImagerPixelSpacing=[0.2, 0.1], **values), tmp_path)
    assert check_on_itks_grid(path).spacing == pytest.approx((0.1, 0.2))
    assert read_image(path).warnings == ()
    assert pydicom.dcmread(path).Modality == "DX"
