"""Pictures of a turned camera: label maps lie where ITK loads the picture, and browsers show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image, ImageOps

from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.turns import TAG, turn_of
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import InputError

KINDS = ("png", "jpg", "tif")
SHAPES = ((24, 40), (32, 32))


def stored(shape: tuple[int, int]) -> np.ndarray:
    """A bright corner, its arms of different length."""
    picture = np.zeros((*shape, 3), np.uint8)
    picture[:8], picture[:, :8], picture[:8, :8] = (0, 0, 230), (0, 230, 230), (230, 230, 230)
    return picture


def save(folder: Path, kind: str, orientation: int, shape: tuple[int, int]) -> Path:
    path = folder / f"picture.{kind}"
    picture = Image.fromarray(stored(shape))
    if kind == "tif":
        picture.save(path, tiffinfo={TAG: orientation})
    else:
        exif = Image.Exif()
        exif[TAG] = orientation
        picture.save(path, exif=exif, quality=100)
    return path


def itks(path: Path) -> np.ndarray:
    """`[rows, columns, 3]`; of a turned TIFF ITK makes four channels."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))[..., :3]


def blue(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 2] > 128).astype(np.uint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_maps_lie_where_each_client_loads_the_picture(
    orientation: int, kind: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    path = save(tmp_path, kind, orientation, shape)
    image = read_image(path)
    assert np.array_equal(blue(image.voxels).T, blue(itks(path)))
    labels = blue(image.voxels)
    # 3D Slicer
    volume = write_label_map(tmp_path / "labels.nrrd", labels, image.grid)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(volume)))[0], blue(itks(path)))
    flat = write_label_map(tmp_path / "labels.png", labels, image.grid)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(flat))), blue(itks(path)))
    # what obeys the tag
    with Image.open(path) as first, Image.open(flat) as second:
        upright = blue(np.asarray(ImageOps.exif_transpose(first).convert("RGB")))
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(second)), upright)
    # the network, and people
    assert np.array_equal(SliceView.of(image.grid).slices(labels)[0], upright)
    # what comes back
    for written in (volume, flat):
        assert np.array_equal(read_label_map(written, image.grid).voxels, labels)


@pytest.mark.parametrize("name", ["upright.png", "upright.nrrd", "upright.nii.gz"])
@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_label_map_of_the_upright_picture_is_turned_back(
    orientation: int, name: str, tmp_path: Path
) -> None:
    image = read_image(save(tmp_path, "png", orientation, SHAPES[0]))
    upright = np.ascontiguousarray(turn_of(orientation).apply(blue(stored(SHAPES[0]))).T)
    grid = Grid(upright.shape, np.eye(4), has_patient_space=False)
    path = write_label_map(tmp_path / name, upright, grid)
    found = read_label_map(path, image.grid)
    assert found.grid.shape == image.grid.shape
    assert np.array_equal(found.voxels, blue(image.voxels))


def test_a_square_label_map_lies_as_stored(tmp_path: Path) -> None:
    """Nothing tells the two apart: it is taken as 3D Slicer draws it."""
    image = read_image(save(tmp_path, "jpg", 6, SHAPES[1]))
    labels = blue(image.voxels)
    plain = Grid(labels.shape, np.eye(4), has_patient_space=False)
    path = write_label_map(tmp_path / "square.png", labels, plain)
    found = read_label_map(path, image.grid)
    assert np.array_equal(found.voxels, labels)
    # both are cut and turned alike
    assert found.grid.upright == image.grid.upright


@pytest.mark.parametrize("value", [0, 9, 6.5, "6", None])
def test_tags_that_the_standard_does_not_know(value: object) -> None:
    assert turn_of(value) == turn_of(1)


@pytest.mark.parametrize("deep", [False, True])
def test_pages_are_turned_alike(deep: bool, tmp_path: Path) -> None:
    pages = np.arange(48, dtype=np.uint16 if deep else np.uint8).reshape(2, 4, 6)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="minisblack", extratags=[(TAG, 3, 1, 6, True)])
    image = read_image(tmp_path / "a.tif")
    assert image.grid.shape == (6, 4, 2)
    # ITK swaps no axes
    assert np.array_equal(image.voxels, pages[..., ::-1].T)
    shown = SliceView.of(image.grid).slices(image.voxels)
    assert np.array_equal(shown, np.rot90(pages, -1, axes=(1, 2)))


def test_pages_that_are_turned_differently(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for orientation in (1, 6):
            file.write(np.zeros((5, 5), np.uint8), extratags=[(TAG, 3, 1, orientation, True)])
    with pytest.raises(InputError, match=r"a\.tif: its 2 pages are turned differently"):
        read_image(tmp_path / "a.tif")
