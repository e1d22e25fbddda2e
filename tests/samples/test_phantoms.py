"""The phantoms: labels of the catalogue, believable intensities, right patient space."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from esp_medsam_app.modalities import get_modality
from esp_medsam_app.samples import build_sample_data, phantoms, series


@pytest.mark.parametrize(
    ("draw", "modality", "shape"),
    [
        (phantoms.nuclei, "microscopy_nuclei", (256, 320)),
        (phantoms.fundus, "fundus_vessels", (512, 512, 3)),
        (phantoms.chest, "xray_chest", (480, 512)),
    ],
)
def test_pictures_hold_every_label_of_their_modality(
    draw: Callable[[], phantoms.Picture], modality: str, shape: tuple[int, ...]
) -> None:
    picture = draw()
    assert picture.pixels.shape == shape
    assert picture.labels.shape == shape[:2]
    assert picture.pixels.dtype == picture.labels.dtype == np.uint8
    ids = set(get_modality(modality).labels.values())
    assert set(np.unique(picture.labels)) == {0} | ids
    for value in ids:
        assert (picture.labels == value).mean() > 0.02


def test_nuclei_shine_on_a_dark_ground() -> None:
    picture = phantoms.nuclei()
    nucleus = picture.labels > 0
    assert np.percentile(picture.pixels[nucleus], 5) > np.percentile(picture.pixels[~nucleus], 95)


def test_vessels_are_darker_than_what_surrounds_them() -> None:
    picture = phantoms.fundus()
    green = picture.pixels[..., 1].astype(int)
    vessel = picture.labels > 0
    ground = ~vessel & (green > 20)
    assert green[vessel].mean() < 0.8 * green[ground].mean()


def test_left_lung_is_on_the_right_of_the_image_and_the_heart_between() -> None:
    picture = phantoms.chest()
    ids = get_modality("xray_chest").labels
    column = {
        name: np.argwhere(picture.labels == value)[:, 1].mean() for name, value in ids.items()
    }
    assert column["right_lung"] < column["heart_mediastinum"] < column["left_lung"]
    value = {name: picture.pixels[picture.labels == i].mean() for name, i in ids.items()}
    assert max(value["left_lung"], value["right_lung"]) + 60 < value["heart_mediastinum"]


def test_abdomen_is_in_hounsfield_units_with_the_liver_at_the_patients_right() -> None:
    volume = phantoms.abdomen()
    liver = volume.labels == get_modality("ct_liver").labels["liver"]
    assert volume.hounsfield.dtype == np.int16
    assert 100 < volume.hounsfield[liver].mean() < 130
    assert volume.hounsfield[0, 0].max() < -900
    assert (volume.hounsfield > 300).mean() > 0.002
    centre = volume.affine @ [*np.argwhere(liver).mean(axis=0), 1]
    # RAS+: to the right, and above the middle
    assert centre[0] > 30
    assert centre[2] > 0
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    spine = volume.hounsfield > 550
    # ribs lie further out
    spine[:60] = spine[130:] = False
    assert (volume.affine @ [*np.argwhere(spine).mean(axis=0), 1])[1] < -30
    assert not liver[:, :, :2].any()
    assert liver[:, :, 2:].any(axis=(0, 1)).all()


def test_dicom_series_is_the_nifti_volume(tmp_path: Path) -> None:
    build_sample_data(tmp_path)
    reader = sitk.ImageSeriesReader()
    folder = str(tmp_path / "dicom/abdomen_phantom")
    (identifier,) = reader.GetGDCMSeriesIDs(folder)
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, identifier))
    of_dicom = reader.Execute()
    of_nifti = sitk.ReadImage(str(tmp_path / "studies/abdomen_phantom.nii.gz"))
    reference = sitk.ReadImage(str(tmp_path / "references/abdomen_phantom.nii.gz"))
    voxels = sitk.GetArrayFromImage(of_nifti)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(of_dicom), voxels)
    for image in (of_dicom, reference):
        np.testing.assert_allclose(image.GetOrigin(), of_nifti.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(image.GetSpacing(), (2, 2, 5), atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), of_nifti.GetDirection(), atol=1e-6)


def test_dicom_files_are_one_valid_series_of_a_made_up_patient() -> None:
    volume = phantoms.abdomen(slices=3)
    files = series.dicom_series(volume, "abdomen_phantom")
    assert list(files) == [f"abdomen_phantom_{number}.dcm" for number in (1, 2, 3)]
    assert files == series.dicom_series(volume, "abdomen_phantom")
    slices = [pydicom.dcmread(BytesIO(file)) for file in files.values()]
    assert len({file.SOPInstanceUID for file in slices}) == 3
    assert len({(file.StudyInstanceUID, file.SeriesInstanceUID) for file in slices}) == 1
    assert all(file.SOPInstanceUID.is_valid for file in slices)
    assert all(file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID for file in slices)
    assert {str(file.PatientName) for file in slices} == {"Phantom^Abdomen"}
    assert [float(file.ImagePositionPatient[2]) for file in slices] == [-5, 0, 5]
    another = pydicom.dcmread(BytesIO(series.dicom_series(volume, "another")["another_1.dcm"]))
    assert another.SeriesInstanceUID != slices[0].SeriesInstanceUID
