"""The overlay: the right slice, the right way round, labels where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.overlay import (
    LONGEST_SIDE,
    PALETTE,
    label_colour,
    render_overlay,
    save_overlay,
)
from esp_medsam_app.modalities import Intensity, Modality

TWO = Modality(name="two", title="", description="", dimension=3, labels={"left": 1, "right": 2})
WINDOW = TWO.model_copy(update={"intensity": Intensity(kind="window", low=0, high=200)})


def picture(voxels: NDArray[np.generic]) -> MedicalImage:
    return MedicalImage(voxels, Grid(voxels.shape[:2], np.eye(4), has_patient_space=False))


def volume(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> MedicalImage:
    return MedicalImage(voxels, Grid(voxels.shape[:3], affine))


def rendered(
    image: MedicalImage, labels: NDArray[np.uint8], modality: Modality = TWO
) -> NDArray[np.int64]:
    """`[row, column, RGB]`, the legend included."""
    return np.asarray(render_overlay(image, labels, modality)).astype(int)


def place_of(pixels: NDArray[np.int64], colour: tuple[int, int, int], height: int) -> list[float]:
    """Mean row and column of the pure colour (a label's outline) in the first `height` rows."""
    rows, columns = np.nonzero((pixels[:height] == colour).all(axis=-1))
    return [float(rows.mean()), float(columns.mean())]


def test_outline_is_solid_and_inside_shows_the_picture() -> None:
    voxels = np.full((600, 500), 100, np.uint8)
    voxels[0, 0], voxels[1, 0] = 0, 255
    voxels[60:90, 40:80] = 120
    labels = np.zeros_like(voxels)
    labels[50:100, 30:90] = 2
    pixels = rendered(picture(voxels), labels)
    assert (pixels[30, 50] == label_colour(2)).all()
    assert (pixels[89, 99] == label_colour(2)).all()
    assert len(set(pixels[29, 60])) == 1
    inside, brighter = pixels[35, 55], pixels[60, 75]
    assert (brighter >= inside).all()
    assert (brighter != inside).any()
    assert len(set(inside)) == 3


def test_colour_pictures_keep_their_colours() -> None:
    voxels = np.zeros((600, 520, 3), np.uint8)
    voxels[..., 0], voxels[..., 1] = 130, 7
    pixels = rendered(picture(voxels), np.zeros((600, 520), np.uint8))
    assert (pixels[:520, :600] == (130, 7, 0)).all()


def test_volume_as_radiologists_look_at_it() -> None:
    """Of the slice with most foreground; the front lies at the top, the patient's left at right."""
    voxels = np.zeros((40, 60, 5), np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[20, 30, 1] = 1
    # RAS+: small indices are the patient's right and back
    labels[2:8, 2:8, 3], labels[32:38, 52:58, 3] = 1, 2
    image = volume(voxels, np.diag([1.0, 1.0, 5.0, 1.0]))
    pixels = rendered(image, labels)
    height, width = 60 * 4, 40 * 4
    right_back = place_of(pixels, label_colour(1), height)
    left_front = place_of(pixels, label_colour(2), height)
    assert right_back == pytest.approx([(60 - 5) * 4 - 0.5, (40 - 5) * 4 - 0.5])
    assert left_front == pytest.approx([(60 - 55) * 4 - 0.5, (40 - 35) * 4 - 0.5])
    assert width <= pixels.shape[1]


def test_pixels_are_square() -> None:
    """A sagittal slice of 30 rows 2 mm apart and 20 columns 1 mm apart is three times as high."""
    labels = np.zeros((9, 20, 30), np.uint8)
    labels[4] = 1
    image = volume(np.zeros(labels.shape, np.int16), np.diag([6.0, 1.0, 2.0, 1.0]))
    pixels = rendered(image, labels)
    solid = (pixels == label_colour(1)).all(axis=-1)[: 30 * 2 * 4]
    rows, columns = np.nonzero(solid)
    assert (rows.max() + 1, columns.max() + 1) == (30 * 2 * 4, 20 * 4)


def test_large_pictures_shrink_and_small_ones_grow() -> None:
    large = render_overlay(picture(np.zeros((3000, 1500), np.uint8)), *empty(3000, 1500))
    assert large.width == LONGEST_SIDE
    small = render_overlay(picture(np.zeros((100, 50), np.uint8)), *empty(100, 50))
    assert small.width == 400


def empty(width: int, height: int) -> tuple[NDArray[np.uint8], Modality]:
    return np.zeros((width, height), np.uint8), TWO


def test_a_window_is_the_same_for_every_slice() -> None:
    voxels = np.full((600, 600), 100, np.float32)
    voxels[:300, :300] = -1000
    voxels[300:, :300] = 3000
    pixels = rendered(picture(voxels), np.zeros((600, 600), np.uint8), WINDOW)
    assert (pixels[150, 150] == 0).all()
    assert (pixels[150, 450] == 255).all()
    assert (abs(pixels[450, 300] - 127.5) <= 0.5).all()


@pytest.mark.parametrize("value", [0.0, np.nan, 7.0])
def test_nothing_to_see_is_still_a_picture(value: float) -> None:
    voxels = np.full((30, 20, 4), value, np.float32)
    labels = np.zeros(voxels.shape, np.uint8)
    assert rendered(volume(voxels, np.eye(4)), labels).shape[-1] == 3


def test_legend_names_each_label_and_says_which_is_elsewhere() -> None:
    """The label's colour stands in the legend; one that is not in the slice has a fainter text."""
    labels = np.zeros((600, 100), np.uint8)
    labels[10:20, 10:20] = 1
    legend = rendered(picture(np.zeros((600, 100), np.uint8)), labels)[100:]
    rows = [np.nonzero((legend == PALETTE[i]).all(axis=-1))[0].mean() for i in range(2)]
    assert rows[0] < rows[1]
    brightest = [legend[int(row) - 6 : int(row) + 6, 40:].max() for row in rows]
    assert brightest[0] > brightest[1] > 100
    # "right (not here)" is longer than "right"
    labels[40:50, 10:20] = 2
    both = rendered(picture(np.zeros((600, 100), np.uint8)), labels)[100:]
    ends = [_text_end(pixels[int(rows[1]) - 6 : int(rows[1]) + 6]) for pixels in (legend, both)]
    assert ends[0] > ends[1] + 40


def _text_end(line: NDArray[np.int64]) -> int:
    """The last column with ink in a legend's line."""
    return int(np.nonzero((line != line[0, -1]).any(axis=(0, 2)))[0].max())


def test_labels_must_lie_on_the_image() -> None:
    with pytest.raises(ValueError, match="do not lie on"):
        render_overlay(picture(np.zeros((30, 20), np.uint8)), *empty(20, 30))


def test_file_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    path = save_overlay(
        tmp_path / "a.picture", picture(np.zeros((30, 20), np.uint8)), *empty(30, 20)
    )
    with Image.open(path) as opened:
        assert opened.format == "PNG"
    assert [item.name for item in tmp_path.iterdir()] == ["a.picture"]


def test_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match="overlay cannot be written"):
        save_overlay(tmp_path / "a.png", picture(np.zeros((30, 20), np.uint8)), *empty(30, 20))
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]
