"""Every input that cannot be used is an InputError that names the file and says what is wrong."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.fileholders import FileHolder
from PIL import Image

from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.reading import is_readable_name, read_image, read_label_map
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import InputError

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def nifti(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def text(folder: Path) -> Path:
    path = folder / "text.nii.gz"
    path.write_text("this is a note, not an image\n" * 40)
    return path


def zipped_text(folder: Path) -> Path:
    path = folder / "text.nii.gz"
    path.write_bytes(gzip.compress(b"this is a note, not an image\n" * 40))
    return path


def cut(folder: Path, name: str) -> Path:
    noise = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    path = nifti(folder / name, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def lying_header(folder: Path) -> Path:
    """Claims 64 TB in a file of some hundred bytes."""
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.header["dim"] = [3, 32000, 32000, 32000, 1, 1, 1, 1]
    path = folder / "lying.nii.gz"
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + VOXELS.tobytes()))
    return path


def flat(folder: Path) -> Path:
    """Its slices lie all at one place."""
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.set_sform(np.eye(4), 1)
    image.header["srow_z"] = 0
    path = folder / "flat.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + VOXELS.tobytes(order="F"))
    return path


def picture(folder: Path, name: str) -> Path:
    path = folder / name
    noise = np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def pages(folder: Path) -> Path:
    path = folder / "pages.tif"
    first, second = Image.new("L", (8, 8)), Image.new("L", (9, 8))
    first.save(path, save_all=True, append_images=[second])
    return path


def nrrd(folder: Path) -> Path:
    path = folder / "cut.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.T), str(path))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def lying_nrrd(folder: Path) -> Path:
    path = folder / "lying.nrrd"
    fields = "type: short", "dimension: 3", "sizes: 30000 30000 30000", "encoding: raw"
    path.write_text("\n".join(["NRRD0004", *fields, "endian: little", "", "short"]))
    return path


def four_dimensional_nrrd(folder: Path) -> Path:
    path = folder / "time.nrrd"
    frames = sitk.JoinSeries([sitk.GetImageFromArray(VOXELS)] * 2)
    sitk.WriteImage(frames, str(path))
    return path


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return make


NAN = np.where(VOXELS == 7, np.nan, VOXELS).astype(np.float32)
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "absent.nii", "no such file or folder"),
    "empty": (written("empty.nii.gz", b""), "the file is empty"),
    "text": (text, "truncated|not a NIfTI"),
    "zipped text": (zipped_text, "not a NIfTI|truncated"),
    "cut .nii.gz": (lambda folder: cut(folder, "cut.nii.gz"), "truncated"),
    "cut .nii": (lambda folder: cut(folder, "cut.nii"), "truncated"),
    "lying header": (lying_header, "cannot hold an image of 32000 x 32000 x 32000"),
    "nan": (lambda folder: nifti(folder / "nan.nii.gz", NAN), "1 of 120 voxels are no numbers"),
    "4D": (
        lambda folder: nifti(folder / "time.nii", np.zeros((4, 4, 4, 3), np.int16)),
        "4D image of 4 x 4 x 4 x 3 voxels",
    ),
    "complex": (
        lambda folder: nifti(folder / "complex.nii", VOXELS.astype(np.complex64)),
        "neither grey values nor colours",
    ),
    "no affine": (flat, "affine"),
    "cut png": (lambda folder: picture(folder, "cut.png"), "truncated or damaged"),
    "cut jpeg": (lambda folder: picture(folder, "cut.jpg"), "truncated or damaged"),
    "text as png": (written("text.png", b"no picture"), "not a picture"),
    "pages": (pages, "2 pages of different size"),
    "cut nrrd": (nrrd, "truncated, damaged"),
    "lying nrrd": (lying_nrrd, "cannot hold an image of 30000 x 30000 x 30000"),
    "4D nrrd": (four_dimensional_nrrd, "4D image"),
    "unknown suffix": (written("notes.docx", b"x"), "not a format that can be read"),
    "text as dicom": (written("text.dcm", b"no image " * 100), "DICOM"),
    "empty folder": (lambda folder: folder, "no DICOM image"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_clear_error(case: str, tmp_path: Path) -> None:
    make, message = CASES[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["secret.nii", "secret.png", "secret.nrrd", "secret.dcm"])
def test_forbidden(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused here, and not by the file system, as root may read everything."""
    path = tmp_path / name
    path.write_bytes(b"x")
    opened = Path.open

    def refuse(file: Path, *args: Any, **options: Any) -> Any:
        if file == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        read_image(path)


def test_a_name_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / ("a" * 300 + ".nii"))


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    path = nifti(tmp_path / "soft.nii", (VOXELS / 7).astype(np.float32))
    with pytest.raises(InputError, match="fractions"):
        read_label_map(path)


def test_negative_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between -5 and 114"):
        read_label_map(nifti(tmp_path / "negative.nii", VOXELS - 5))


def test_colours_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "colours.png"
    Image.new("RGB", (9, 9), (200, 10, 10)).save(path)
    with pytest.raises(InputError, match="colours"):
        read_label_map(path)


def test_whole_numbers_as_float_are_labels(tmp_path: Path) -> None:
    labels = read_label_map(nifti(tmp_path / "labels.nii", VOXELS.astype(np.float64)))
    assert labels.voxels.dtype == np.uint8
    assert np.array_equal(labels.voxels, VOXELS)


def test_palette_of_a_label_map_is_not_resolved(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(path)
    assert np.array_equal(read_label_map(path).voxels, indices.T)
    assert read_image(path).is_rgb


@pytest.mark.parametrize(
    ("labels", "name", "message"),
    [
        (np.zeros((4, 5), np.uint8), "a.nii", "on a grid"),
        (np.zeros((4, 5, 6), np.float32), "a.nii", "not uint8"),
        (np.zeros((4, 5, 6), np.uint8), "a.jpg", "ends with none"),
        (np.zeros((4, 5, 6), np.uint8), "a.png", "2D label maps only"),
    ],
)
def test_label_maps_that_cannot_be_written(
    tmp_path: Path, labels: np.ndarray, name: str, message: str
) -> None:
    grid = Grid(shape=(4, 5, 6), affine=np.eye(4))
    with pytest.raises(ValueError, match=message):
        write_label_map(tmp_path / name, labels, grid)
    assert list(tmp_path.iterdir()) == []


def test_failed_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid(shape=(4, 5, 6), affine=np.eye(4))
    target = tmp_path / "labels.nii.gz"
    write_label_map(target, np.ones((4, 5, 6), np.uint8), grid)
    before = target.read_bytes()

    def full(image: object, file_map: dict[str, FileHolder]) -> None:
        file_map["image"].fileobj.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(nib.Nifti1Image, "to_file_map", full)
    with pytest.raises(OSError, match="no space left"):
        write_label_map(target, np.zeros((4, 5, 6), np.uint8), grid)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_names_that_can_be_read(tmp_path: Path) -> None:
    for name in ("a.nii", "a.b.nii.gz", "a.NRRD", "a.png", "a.JPG", "a.tiff", "a.dcm"):
        assert is_readable_name(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert not is_readable_name(tmp_path / "notes.txt")
    assert not is_readable_name(tmp_path)
    assert not is_readable_name(tmp_path / ".nii")
