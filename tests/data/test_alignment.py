"""Whether a label map lies on its image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from esp_medsam_app.data.alignment import check_alignment
from esp_medsam_app.data.image import LPS, Grid
from esp_medsam_app.errors import InputError

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -40], [0, 0, 4, 7], [0, 0, 0, 1]])
MOVED, SCALED, FLIPPED = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
MOVED[0, 3] += 5
SCALED[:3, :3] *= 1.5
FLIPPED[:3, 2] *= -1


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (Grid((4, 5, 7), AFFINE), "the label map has 4 x 5 x 7 voxels, its image has 4 x 5 x 6"),
        (Grid((4, 5, 6), MOVED), r"origin is \(35, -40, 7\), the image's is \(30, -40, 7\)"),
        (Grid((4, 5, 6), SCALED), "spacing is"),
        (Grid((4, 5, 6), FLIPPED), "orientation is"),
    ],
)
def test_other_grids_are_told(label: Grid, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_alignment(label, Grid((4, 5, 6), AFFINE))


def test_grids_within_rounding_are_the_same() -> None:
    near = AFFINE.copy()
    near[0, 3] += 0.4  # less than half of 1.5 mm
    check_alignment(Grid((4, 5, 6), near), Grid((4, 5, 6), AFFINE))
    check_alignment(Grid((4, 5), LPS, False), Grid((4, 5), AFFINE))


def test_the_message_names_both_files() -> None:
    label, image = Grid((2, 2), AFFINE), Grid((3, 2), AFFINE)
    with pytest.raises(InputError, match=r"^a/label\.nii: .* its image ct\.nii has"):
        check_alignment(label, image, path=Path("a/label.nii"), image_name="ct.nii")
