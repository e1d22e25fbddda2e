"""Real files of installed packages, and what formats can hold beside plain grey values."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.data import get_testdata_file
from support.dicom_series import write_series

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RGB = [
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
    "ExplVR_BigEnd.dcm",
]


def packaged(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None, f"pydicom no longer ships {name}"
    return Path(path)


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm",
     "MR_small_bigendian.dcm"],
)  # fmt: skip
def test_single_slice_equals_itks_reading(name: str) -> None:
    path = packaged(name)
    image, expected = read_image(path), sitk.ReadImage(str(path))
    assert np.array_equal(image.voxels, sitk.GetArrayFromImage(expected).T)
    lps = LPS @ image.grid.affine
    np.testing.assert_allclose(lps[:3, 3], expected.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(image.grid.spacing[:2], expected.GetSpacing()[:2], atol=1e-6)
    np.testing.assert_allclose(
        lps[:3, :2] / image.grid.spacing[:2],
        np.array(expected.GetDirection()).reshape(3, 3)[:, :2],
        atol=1e-6,
    )
    assert image.dicom_modality == name[:2]


@pytest.mark.parametrize("name", RGB)
def test_colours_equal_itks_reading(name: str) -> None:
    path = packaged(name)
    image = read_image(path)
    assert image.is_rgb
    assert not image.grid.has_patient_space
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    assert np.array_equal(image.voxels.swapaxes(0, 1), expected)


def test_frames_of_a_film_are_kept_in_order() -> None:
    path = packaged("SC_rgb_rle_2frame.dcm")
    image = read_image(path)
    assert image.grid.shape == (100, 100, 2)
    expected = pydicom.dcmread(path).pixel_array
    assert np.array_equal(np.moveaxis(image.voxels, 2, 0).swapaxes(1, 2), expected)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("liver_1frame.dcm", "a segmentation"),
        ("rtdose.dcm", "a dose distribution"),
        ("test-SR.dcm", "a report"),
        ("MR_truncated.dcm", "truncated"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "cannot be decoded"),
    ],
)
def test_files_that_are_no_images(name: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_image(packaged(name))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    voxels = np.arange(5 * 6 * 4, dtype=np.int16).reshape(5, 6, 4)
    write_series(tmp_path / "ct", voxels, np.diag([-0.7, -0.7, 2.0, 1.0]), [0, 1, 2, 3])
    return tmp_path / "ct"


def change(path: Path, **values: object) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


def test_missing_slice(series: Path) -> None:
    (series / "001.dcm").unlink()
    (series / "notes.txt").write_text("not DICOM, and left out")
    with pytest.raises(InputError, match=r"slices are .* apart"):
        read_image(series)


def test_missing_slice_is_named(series: Path, tmp_path: Path) -> None:
    voxels = np.zeros((5, 6, 8), np.int16)
    write_series(tmp_path / "long", voxels, np.diag([-0.7, -0.7, 2.0, 1.0]), list(range(8)))
    (tmp_path / "long" / "004.dcm").unlink()
    message = r"2\.000 mm apart, but 4\.000 mm between 003\.dcm and 005\.dcm: 1 missing"
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "long")


def test_two_phases_at_the_same_place(series: Path) -> None:
    position = pydicom.dcmread(series / "001.dcm").ImagePositionPatient
    change(series / "002.dcm", ImagePositionPatient=position)
    with pytest.raises(InputError, match="same place"):
        read_image(series)


def test_localizer(series: Path) -> None:
    change(series / "003.dcm", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    with pytest.raises(InputError, match="different orientation"):
        read_image(series)


def test_several_series(series: Path) -> None:
    change(series / "003.dcm", SeriesInstanceUID="1.2.3", SeriesDescription="scout")
    with pytest.raises(InputError, match=r"holds 2 series: .*1\.2\.3 \(scout, 1 files\)"):
        read_image(series)


def test_one_file_of_the_series_is_one_slice(series: Path) -> None:
    image = read_image(series / "002.dcm")
    whole = read_image(series)
    assert np.array_equal(image.voxels[:, :, 0], whole.voxels[:, :, 2])
    np.testing.assert_allclose(
        image.grid.affine[:3, 3], (whole.grid.affine @ [0, 0, 2, 1])[:3], atol=1e-5
    )


def test_slope_of_each_slice(series: Path) -> None:
    before = read_image(series).voxels.astype(float)
    change(series / "002.dcm", RescaleSlope="0.5", RescaleIntercept="3")
    after = read_image(series).voxels
    assert after.dtype == np.float32
    np.testing.assert_allclose(after[..., 2], (before[..., 2] + 10) * 0.5 + 3)
    np.testing.assert_allclose(after[..., :2], before[..., :2])


def test_monochrome1_is_bright_where_the_structure_is(tmp_path: Path) -> None:
    voxels = np.arange(30, dtype=np.int16).reshape(5, 6, 1)
    write_series(tmp_path / "xr", voxels, np.eye(4), [0])
    path = tmp_path / "xr" / "000.dcm"
    change(path, PhotometricInterpretation="MONOCHROME1", PixelRepresentation=0, BitsStored=12,
           HighBit=11)  # fmt: skip
    # Hounsfield units mean the same however they are displayed
    assert np.array_equal(read_image(path).voxels, voxels)
    change(path, Modality="DX")
    assert np.array_equal(read_image(path).voxels, 4095 - (voxels + 10) - 10)


def test_radiograph_without_position(tmp_path: Path) -> None:
    voxels = np.arange(30, dtype=np.int16).reshape(5, 6, 1)
    write_series(tmp_path / "dx", voxels, np.eye(4), [0])
    path = tmp_path / "dx" / "000.dcm"
    dataset = pydicom.dcmread(path)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
    dataset.ImagerPixelSpacing = ["0.2", "0.15"]
    dataset.Modality = "DX"
    dataset.save_as(path)
    image = read_image(path)
    assert image.grid.shape == (5, 6)
    assert not image.grid.has_patient_space
    assert image.grid.spacing == (0.15, 0.2)
    assert image.dicom_modality == "DX"


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    """Frames with positions and slopes of their own, in the wrong order."""
    write_series(tmp_path / "mf", np.zeros((5, 6, 1), np.int16), np.eye(4), [0])
    path = tmp_path / "mf" / "000.dcm"
    dataset = pydicom.dcmread(path)
    stored = np.arange(3 * 6 * 5, dtype=np.int16).reshape(3, 6, 5)
    dataset.NumberOfFrames, dataset.PixelData = 3, stored.tobytes()
    orientation = dataset.ImageOrientationPatient
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing

    def item(**values: object) -> pydicom.Dataset:
        made = pydicom.Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)],
            PixelMeasuresSequence=[item(PixelSpacing=["2", "1"], SliceThickness="3")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=["0", "0", str(z)])],
            PixelValueTransformationSequence=[item(RescaleSlope=str(slope), RescaleIntercept="0")],
        )
        for z, slope in ((-6, 1), (0, 2), (-3, 3))
    ]
    dataset.save_as(path)
    image = read_image(path)
    assert image.grid.shape == (5, 6, 3)
    np.testing.assert_allclose(image.grid.spacing, (1, 2, 3))
    along = -1 if image.grid.affine[2, 2] < 0 else 1
    expected = [stored[0].T, stored[2].T * 3, stored[1].T * 2][::along]
    assert np.array_equal(image.voxels, np.stack(expected, axis=2))


def test_scaled_nifti(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "scaled.nii")
    read = read_image(tmp_path / "scaled.nii")
    assert read.voxels.dtype == np.float32
    np.testing.assert_allclose(read.voxels.ravel(), np.arange(24) * 0.5 - 3)


def test_colour_nifti(tmp_path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels = np.zeros((3, 4, 2), kind)
    voxels["G"][1, 2, 0] = 200
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "colour.nii")
    image = read_image(tmp_path / "colour.nii")
    assert image.is_rgb
    assert image.voxels[1, 2, 0].tolist() == [0, 200, 0]


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 4, 1)])
def test_dimensions_of_a_nifti(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii").grid.shape == shape[:3]


def test_real_nifti_of_nibabel() -> None:
    folder = Path(nib.__file__).parent / "tests" / "data"
    image = read_image(folder / "anatomical.nii")
    expected = nib.load(folder / "anatomical.nii")
    assert image.grid.shape == expected.shape
    np.testing.assert_allclose(image.voxels, expected.get_fdata(), rtol=1e-6)
    assert np.array_equal(image.grid.affine, expected.affine)
    with pytest.raises(InputError, match="4D"):
        read_image(folder / "functional.nii")


def test_pictures_of_many_kinds(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 65535, (6, 5)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "16.png")
    assert np.array_equal(read_image(tmp_path / "16.png").voxels, grey.T)
    clear = np.zeros((6, 5, 4), np.uint8)
    clear[2, 3] = [250, 100, 50, 255]
    clear[4, 4] = [250, 100, 50, 0]
    Image.fromarray(clear).save(tmp_path / "rgba.png")
    read = read_image(tmp_path / "rgba.png").voxels
    assert read.shape == (5, 6, 3)
    assert read[3, 2].tolist() == [250, 100, 50]
    assert read[4, 4].tolist() == [0, 0, 0]
    Image.fromarray(grey > 30000).save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png").voxels)) == {0, 255}


def test_pages_are_a_volume(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (3, 1, 2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    image = read_image(tmp_path / "pages.tif")
    assert image.grid.shape == (5, 4, 3)
    assert image.voxels[0, 0].tolist() == [3, 1, 2]


def test_previews_of_a_phone_are_no_pages(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((6, 8, 3), np.uint8))
    preview = picture.resize((4, 3))
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview])
    assert read_image(tmp_path / "a.jpg").grid.shape == (8, 6)


def test_byte_order_is_the_machines(tmp_path: Path) -> None:
    stored = np.arange(20, dtype=">u2").reshape(4, 5) * 1000
    Image.fromarray(stored).save(tmp_path / "big.tif")
    voxels = read_image(tmp_path / "big.tif").voxels
    assert voxels.dtype.isnative
    assert np.array_equal(voxels, stored.T)


def test_tiny_spacing_is_no_damage(tmp_path: Path) -> None:
    """Of a microscope."""
    affine = np.diag([2e-5, 2e-5, 2e-5, 1.0])
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine), tmp_path / "cell.nii")
    np.testing.assert_allclose(read_image(tmp_path / "cell.nii").grid.affine, affine)
