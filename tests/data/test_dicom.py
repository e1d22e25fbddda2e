"""Kinds of DICOM images and folders that scanners, archives and disks come up with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from support.dicom_series import write_series

from esp_medsam_app.data.reading import is_readable_name, read_image
from esp_medsam_app.data.trust import own_files
from esp_medsam_app.errors import InputError

VOXELS = np.arange(5 * 6 * 4, dtype=np.int16).reshape(5, 6, 4)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_series(tmp_path / "ct", VOXELS, np.diag([-0.7, -0.7, 2.0, 1.0]), [3, 2, 1, 0])
    return tmp_path / "ct"


def change(path: Path, **values: object) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


def packaged(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    assert path is not None, f"pydicom no longer ships {name}"
    return Path(path)


def test_reversed_files(series: Path) -> None:
    image = read_image(series)
    assert np.array_equal(image.voxels, VOXELS)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    expected = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(expected).T, image.voxels)
    lps = np.diag([-1, -1, 1, 1]) @ image.grid.affine
    matrix = np.array(expected.GetDirection()).reshape(3, 3) * expected.GetSpacing()
    np.testing.assert_allclose(lps[:3, :3], matrix, atol=1e-6)
    np.testing.assert_allclose(lps[:3, 3], expected.GetOrigin(), atol=1e-6)


def test_other_files_of_the_folder_are_left_out(series: Path) -> None:
    (series / "notes.txt").write_text("no DICOM")
    (series / "preview.png").write_bytes(b"no DICOM")
    shutil.copy(packaged("test-SR.dcm"), series)
    shutil.copy(packaged("DICOMDIR"), series)
    assert is_readable_name(series)
    assert np.array_equal(read_image(series).voxels, VOXELS)


def test_files_without_suffix(series: Path) -> None:
    for file in list(series.iterdir()):
        file.rename(file.with_suffix(""))
    assert is_readable_name(series)
    assert is_readable_name(series / "000")
    assert np.array_equal(read_image(series).voxels, VOXELS)


@pytest.mark.parametrize("content", [b"", b"damaged" * 100])
def test_a_damaged_slice_is_not_passed_over(series: Path, content: bytes) -> None:
    """The last slice would else be missing without a gap."""
    (series / "000.dcm").write_bytes(content)
    with pytest.raises(InputError, match=r"000\.dcm"):
        read_image(series)


def test_a_truncated_slice(series: Path) -> None:
    file = series / "000.dcm"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(InputError, match="truncated"):
        read_image(series)


def test_different_sizes(series: Path) -> None:
    change(series / "001.dcm", Rows=3, Columns=10)
    with pytest.raises(InputError, match=r"different size \(10 x 3, 5 x 6\)"):
        read_image(series)


def test_slightly_turned_slices_are_no_volume(series: Path) -> None:
    """Half a degree is two millimetres at the edge of a slice."""
    angle = np.deg2rad(0.5)
    turned = [np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]
    change(series / "001.dcm", ImageOrientationPatient=turned)
    with pytest.raises(InputError, match="different orientation"):
        read_image(series)


def test_x_rays_are_images_by_themselves(series: Path) -> None:
    for file in series.iterdir():
        change(file, Modality="DX", ImagePositionPatient=None, ImageOrientationPatient=None)
    assert not is_readable_name(series)
    with pytest.raises(InputError, match="4 of 4 images do not say where"):
        read_image(series)
    assert read_image(series / "000.dcm").grid.shape == (5, 6)


def test_a_slice_without_position(series: Path) -> None:
    change(series / "002.dcm", ImagePositionPatient=None)
    with pytest.raises(InputError, match=r"1 of 4 images do not say where .*002\.dcm"):
        read_image(series)


def test_values_that_break_the_standard(series: Path) -> None:
    file = series / "001.dcm"
    content = file.read_bytes()
    assert content.count(b"4.000000") == 1
    file.write_bytes(content.replace(b"4.000000", b"4.0O00x0"))
    with pytest.raises(InputError, match="damaged"):
        read_image(series)


def test_bits_above_the_stored_ones(series: Path) -> None:
    """Old files keep an overlay there."""
    file = series / "000.dcm"
    dataset = pydicom.dcmread(file)
    stored = np.arange(30, dtype=np.uint16).reshape(6, 5)
    dataset.PixelData = (stored | 0x8000).tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.save_as(file)
    assert np.array_equal(read_image(file).voxels[..., 0], stored.T.astype(int) - 10)
    signed = (np.arange(30).reshape(6, 5) - 15).astype(np.int16)
    dataset.PixelData = (signed & 0x0FFF).astype(np.uint16).tobytes()
    dataset.PixelRepresentation = 1
    dataset.save_as(file)
    assert np.array_equal(read_image(file).voxels[..., 0], signed.T - 10)


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_upper_bits_are_shifted(series: Path, signed: bool) -> None:
    """HighBit 15 with 12 bits, as ACR-NEMA allowed."""
    file = series / "000.dcm"
    dataset = pydicom.dcmread(file)
    values = np.arange(30).reshape(6, 5) * 100 - (1500 if signed else 0)
    # what lies below the stored bits is an overlay
    dataset.PixelData = ((values << 4) | 5).astype(np.int16 if signed else np.uint16).tobytes()
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 15, int(signed)
    dataset.save_as(file)
    assert np.array_equal(read_image(file).voxels[..., 0], values.T - 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RescaleSlope", "0"), ("RescaleSlope", "NaN"), ("RescaleIntercept", "NaN")],
)
def test_a_rescaling_that_leaves_nothing_is_named(series: Path, name: str, value: str) -> None:
    change(series / "002.dcm", **{name: value})
    with pytest.raises(InputError, match=rf"002\.dcm: its {name} is (0|nan|NaN).*Mend"):
        read_image(series)


@pytest.mark.parametrize(("bits", "kind"), [(8, "u1"), (16, "<u2")])
def test_palette(series: Path, bits: int, kind: str) -> None:
    file = series / "000.dcm"
    dataset = pydicom.dcmread(file)
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "PALETTE COLOR", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = (np.arange(30, dtype=np.uint8) % 4).tobytes()
    tables = {"Red": [0, 10, 20, 255], "Green": [0, 1, 2, 3], "Blue": [9, 8, 7, 6]}
    for name, table in tables.items():
        entries = np.array(table, kind) * (1 if bits == 8 else 256)
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [4, 0, bits])
        dataset[f"{name}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.astype(kind).tobytes())
    dataset.save_as(file)
    image = read_image(file)
    assert image.voxels[3, 0, 0].tolist() == [255, 3, 6]
    assert image.voxels[1, 0, 0].tolist() == [10, 1, 8]


def test_modality_lookup_table(series: Path) -> None:
    file = series / "000.dcm"
    dataset = pydicom.dcmread(file)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.PixelRepresentation = 0
    dataset.PixelData = (np.arange(30, dtype=np.uint16) % 3).tobytes()
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [3, 0, 16], [100, 50, 7]
    table["LUTDescriptor"].VR = "US"
    table["LUTData"].VR = "US"
    dataset.ModalityLUTSequence = [table]
    dataset.save_as(file)
    assert read_image(file).voxels[:3, 0, 0].tolist() == [100, 50, 7]


def test_enhanced_frames_in_jpeg_ls(tmp_path: Path) -> None:
    """Compressed as only ITK decodes it, with slopes of each frame."""
    dataset = pydicom.dcmread(packaged("MR_small_jpeg_ls_lossless.dcm"))
    (frame,) = generate_pixel_data_frame(dataset.PixelData, 1)
    dataset.PixelData = encapsulate([frame, frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.NumberOfFrames = 2
    groups = []
    for z, slope in ((3, 2), (0, 1)):
        group, place, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [0, 0, z]
        values.RescaleSlope, values.RescaleIntercept = slope, 5
        group.PlanePositionSequence = [place]
        group.PixelValueTransformationSequence = [values]
        turn, measure = pydicom.Dataset(), pydicom.Dataset()
        turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        measure.PixelSpacing = [0.5, 0.25]
        group.PlaneOrientationSequence, group.PixelMeasuresSequence = [turn], [measure]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.save_as(tmp_path / "enhanced.dcm")
    image = read_image(tmp_path / "enhanced.dcm")
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(packaged("MR_small.dcm"))))[0].T
    assert image.grid.spacing == (0.25, 0.5, 3.0)
    assert np.array_equal(image.voxels[..., 0], stored.astype(int) + 5)
    assert np.array_equal(image.voxels[..., 1], stored.astype(int) * 2 + 5)


def test_deflated_file() -> None:
    path = packaged("image_dfl.dcm")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    assert np.array_equal(read_image(path).voxels.T, expected)


def test_a_lying_header(series: Path) -> None:
    file = series / "000.dcm"
    change(file, Rows=65535, Columns=65535, NumberOfFrames="1000")
    with (
        own_files(),
        pytest.raises(InputError, match="cannot hold 1000 frames of 65535 x 65535"),
    ):
        read_image(file)
    with pytest.raises(InputError, match="65535 x 65535 x 1000 voxels would take"):
        read_image(file)
