"""Label maps of pictures and X-rays lie on their image where viewers, through ITK, put it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from support.dicom_series import write_series

from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.names import label_map_suffix
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.trust import own_files
from esp_medsam_app.data.writing import write_label_map

VOXELS = np.random.default_rng(0).integers(0, 200, (6, 5)).astype(np.uint8)


def _picture(folder: Path) -> Path:
    Image.fromarray(VOXELS.T).save(folder / "picture.png")
    return folder / "picture.png"


def _x_ray(folder: Path) -> Path:
    write_series(folder, VOXELS[..., np.newaxis].astype(np.int16), np.eye(4), [0])
    dataset = pydicom.dcmread(folder / "000.dcm")
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
    dataset.Modality = "DX"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.ImagerPixelSpacing = ["0.2", "0.15"]
    dataset.save_as(folder / "000.dcm")
    return folder / "000.dcm"


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".nii"])
@pytest.mark.parametrize("make", [_picture, _x_ray])
def test_where_itk_puts_the_image(make, suffix: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = make(tmp_path)
    image = read_image(source)
    assert image.grid.shape == (6, 5)
    assert not image.grid.has_patient_space
    target = write_label_map(tmp_path / f"labels{suffix}", VOXELS, image.grid)
    # Slicer reads pictures, as other images, into three dimensions
    expected = sitk.ReadImage(str(source), imageIO="PNGImageIO" if make is _picture else "")
    if expected.GetDimension() == 2:
        expected = sitk.JoinSeries(expected)
    found = sitk.ReadImage(str(target))
    assert np.array_equal(sitk.GetArrayFromImage(found)[0], VOXELS.T)
    assert found.GetSize() == expected.GetSize()
    np.testing.assert_allclose(found.GetSpacing()[:2], expected.GetSpacing()[:2], atol=1e-6)
    np.testing.assert_allclose(found.GetOrigin(), expected.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(found.GetDirection(), expected.GetDirection(), atol=1e-6)
    # what a viewer sends back becomes the picture's label map again
    again = read_label_map(target, image.grid)
    assert np.array_equal(again.voxels, VOXELS)
    assert read_label_map(target).voxels.shape == (6, 5, 1)


def test_an_x_ray_keeps_its_pixel_size(tmp_path: Path) -> None:
    assert label_map_suffix(read_image(_picture(tmp_path)).grid) == ".png"
    assert label_map_suffix(read_image(_x_ray(tmp_path)).grid) == ".nii.gz"


def test_another_shape_stays_another(tmp_path: Path) -> None:
    """Only one slice is a picture."""
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 2), np.uint8), np.eye(4)), tmp_path / "two.nii")
    grid = Grid((6, 5), np.eye(4), has_patient_space=False)
    with own_files():
        assert read_label_map(tmp_path / "two.nii", grid).voxels.shape == (6, 5, 2)


def test_2d_nifti_stays_2d(tmp_path: Path) -> None:
    affine = np.array([[0.5, 0, 0, 3], [0, 0.7, 0, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "flat.nii")
    image = read_image(tmp_path / "flat.nii")
    assert image.grid.shape == (6, 5)
    assert image.grid.has_patient_space
    # the first index runs to the patient's right, the second to the front: both turn
    assert np.array_equal(SliceView.of(image.grid).slices(VOXELS)[0], VOXELS[::-1, ::-1].T)
    written = nib.load(write_label_map(tmp_path / "labels.nii", VOXELS, image.grid))
    assert written.shape == (6, 5)
    assert np.array_equal(written.affine, nib.load(tmp_path / "flat.nii").affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_is_the_slice(axis: int) -> None:
    """Also a thin one, and of any orientation."""
    shape = [7, 8, 9]
    shape[axis] = 1
    grid = Grid(tuple(shape), np.eye(4))
    slices = SliceView.of(grid).slices(np.zeros(shape))
    assert slices.shape[0] == 1
    assert min(slices.shape[1:]) > 1


def test_digits_of_nifti_2_are_kept(tmp_path: Path) -> None:
    affine = np.diag([0.1, 0.2, 0.3, 1.0])
    affine[:3, 3] = 1 / 3
    nib.save(nib.Nifti2Image(np.zeros((3, 4, 5), np.int16), affine), tmp_path / "image.nii")
    grid = read_image(tmp_path / "image.nii").grid
    written = write_label_map(tmp_path / "labels.nii", np.zeros(grid.shape, np.uint8), grid)
    assert np.array_equal(nib.load(written).affine, affine)
