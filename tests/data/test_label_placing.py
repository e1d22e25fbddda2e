"""Label maps that lie on their image, but are stored in another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from esp_medsam_app.data.alignment import check_alignment
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.data.writing import write_image, write_label_map
from esp_medsam_app.errors import InputError

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.13, 1.5, 0, -40], [0, 0, 4, 7], [0, 0, 0, 1]])
SHAPE = (7, 6, 5)
LABELS = np.zeros(SHAPE, np.uint8)
LABELS[2:5, 1:4, 3:] = 1
LABELS[3, 2, 4] = 2


@pytest.fixture
def image(tmp_path: Path) -> Path:
    voxels = np.zeros(SHAPE, np.int16)
    return write_image(
        tmp_path / "image", MedicalImage(voxels, Grid(SHAPE, np.diag([2, 3, 4, 1.0])))
    )


def cropped(
    folder: Path, name: str, grid: Grid, first: tuple[int, ...], end: tuple[int, ...]
) -> Path:
    """As 3D Slicer saves a segmentation: ITK crops it, and knows where it lies."""
    whole = sitk.ReadImage(
        str(write_label_map(folder / "whole.nrrd", LABELS.reshape(grid.shape), grid))
    )
    part = sitk.RegionOfInterest(whole, [b - a for a, b in zip(first, end, strict=True)], first)
    sitk.WriteImage(part, str(folder / name), useCompression=True)
    return folder / name


def test_a_segmentation_cropped_to_its_extent(image: Path, tmp_path: Path) -> None:
    grid = read_image(image).grid
    path = cropped(tmp_path, "label.seg.nrrd", grid, (2, 1, 3), (5, 4, 5))
    found = read_label_map(path, grid)
    check_alignment(found.grid, grid)
    assert np.array_equal(found.voxels, LABELS)
    # alone it is what it is
    assert read_label_map(path).grid.shape == (3, 3, 2)


def test_of_an_oblique_image(tmp_path: Path) -> None:
    grid = Grid(SHAPE, AFFINE)
    path = cropped(tmp_path, "label.seg.nrrd", grid, (0, 1, 3), (7, 4, 5))
    assert np.array_equal(read_label_map(path, grid).voxels, LABELS)


def test_of_a_picture(tmp_path: Path) -> None:
    Image.new("L", (7, 30)).save(tmp_path / "picture.png")
    grid = read_image(tmp_path / "picture.png").grid
    labels = LABELS.reshape(7, 30)
    rows, columns = (np.nonzero(labels)[axis] for axis in (1, 0))
    first, end = (columns.min(), rows.min(), 0), (columns.max() + 1, rows.max() + 1, 1)
    path = cropped(tmp_path, "label.seg.nrrd", grid, tuple(map(int, first)), tuple(map(int, end)))
    assert np.array_equal(read_label_map(path, grid).voxels, labels)


@pytest.mark.parametrize("name", ["label.nrrd", "label.mha"])
def test_other_files_have_to_be_whole(image: Path, name: str, tmp_path: Path) -> None:
    """A part of a label map is a mistake, where nobody has said that it is a part."""
    grid = read_image(image).grid
    found = read_label_map(cropped(tmp_path, name, grid, (2, 1, 3), (5, 4, 5)), grid)
    with pytest.raises(InputError, match="3 x 3 x 2 voxels"):
        check_alignment(found.grid, grid)


@pytest.mark.parametrize("change", ["beside", "beyond", "coarser", "mirrored"])
def test_what_is_no_part_of_the_image(image: Path, change: str, tmp_path: Path) -> None:
    grid = read_image(image).grid
    path = cropped(tmp_path, "label.seg.nrrd", grid, (2, 1, 3), (5, 4, 5))
    part = sitk.ReadImage(str(path))
    if change == "beside":
        part.SetOrigin([value + 0.7 for value in part.GetOrigin()])
    elif change == "beyond":
        part.SetOrigin([value + 4 for value in part.GetOrigin()])
    elif change == "coarser":
        part.SetSpacing([value * 1.2 for value in part.GetSpacing()])
    else:
        part.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(part, str(path))
    with pytest.raises(InputError, match="3 x 3 x 2 voxels"):
        check_alignment(read_label_map(path, grid).grid, grid)
