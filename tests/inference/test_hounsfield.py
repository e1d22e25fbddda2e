"""What cannot be a CT in Hounsfield units is refused; whatever can be one passes, cropped too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.hounsfield import check_units, contradiction
from esp_medsam_app.modalities import Intensity, Modality, get_modality

CT = Modality(
    name="ct_organ", title="", description="", dimension=3, labels={"organ": 1},
    dicom_modalities=("CT",), intensity=Intensity(kind="window", low=-160, high=240),
)  # fmt: skip
LUCK = np.random.default_rng(0)


def body(shape: tuple[int, int, int] = (80, 70, 12), noise: float = 12) -> np.ndarray:
    """An abdomen in air: fat, muscle, a liver, spine and a lung."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    voxels = np.full(shape, -1000.0)
    voxels[x**2 + y**2 < 0.8] = -100
    voxels[x**2 + y**2 < 0.6] = 45
    voxels[(x + 0.3) ** 2 + y**2 < 0.12] = 110
    voxels[(x - 0.4) ** 2 + (y + 0.3) ** 2 < 0.05] = -820
    voxels[x**2 + (y - 0.55) ** 2 < 0.03] = 700
    return (voxels + LUCK.normal(0, noise, shape)).round().clip(-1024, 3071).astype(np.int16)


BODY = body()


@pytest.mark.parametrize("modality", [CT, get_modality("ct_liver")])
@pytest.mark.parametrize(
    ("voxels", "sign"),
    [
        (BODY.astype(np.int32) + 1024, "rescale intercept"),
        ((BODY + 1024).astype(np.uint16), "rescale intercept"),
        (BODY + 1000, "rescale intercept"),
        ((BODY + 1024)[30:50, 20:50, 2:8], "rescale intercept"),
        ((np.clip(BODY, -160, 240) + 160) / np.float32(400), "normalised"),
        (np.clip(BODY / np.float32(1000), -1, 1), "normalised"),
        ((BODY - BODY.mean()) / np.float32(BODY.std()), "normalised"),
        ((np.clip(BODY, -160, 240) + 160) * 51 // 80, "8 bits"),
        (((np.clip(BODY, -160, 240) + 160) * np.float32(0.6375)), "8 bits"),
        (BODY.view(np.uint16), "brighter than any tissue"),
        ((BODY.astype(np.int32) + 1024) * 16, "brighter than any tissue"),
        (BODY.astype(np.int32) + 32768, "brighter than any tissue"),
    ],
)
def test_what_cannot_be_hounsfield_units(voxels: np.ndarray, sign: str, modality: Modality) -> None:
    image = MedicalImage(voxels, Grid(voxels.shape, np.eye(4)))
    with pytest.raises(InputError, match=rf"not Hounsfield units.*{modality.name}.*{sign}.*go on"):
        check_units(image, modality, "Go on: go on")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_crop_of_a_ct_is_refused(data: st.DataObject) -> None:
    crop = tuple(
        slice(start, data.draw(st.integers(start + 1, extent)))
        for extent in BODY.shape
        for start in [data.draw(st.integers(0, extent - 1))]
    )
    voxels = BODY[crop]
    if voxels.size >= 64:
        assert contradiction(voxels) is None


@pytest.mark.parametrize(
    "voxels",
    [
        # tissues alone, with a scanner's noise
        *(LUCK.normal(mean, 8, (30, 30, 4)).astype(np.int16) for mean in (-900, -100, 0, 60, 180)),
        LUCK.normal(1100, 250, (30, 30, 4)).astype(np.int16).clip(-200, 3071),
        # cut out of its surroundings
        np.where(BODY > 70, BODY, 0)[:, :, :4],
        np.where(BODY > 70, BODY, -1000),
        # windowed by a publisher, still in its unit
        np.clip(BODY, -125, 275),
        np.clip(BODY, -1024, 300).astype(np.float32),
        # a scanner's value for what lies outside its circle
        np.where(BODY < -990, -3024, BODY).astype(np.int16),
        # metal
        np.where(BODY > 690, 30000, BODY).astype(np.int16),
        np.zeros((9, 9), np.int16),
        np.full((9, 9), np.nan, np.float32),
    ],
)  # fmt: skip
def test_what_may_be_hounsfield_units(voxels: np.ndarray) -> None:
    assert contradiction(voxels) is None


@pytest.mark.parametrize(
    ("voxels", "change"),
    [
        # windowed pictures
        (BODY.clip(0, 255).astype(np.uint8), {}),
        (np.repeat(BODY.clip(0, 255).astype(np.uint8)[:, :, :1], 3, axis=2), {}),
        # no CT, or no window in its unit
        (BODY + 1024, {"dicom_modalities": ("MR",)}),
        (BODY + 1024, {"intensity": Intensity()}),
    ],
)
def test_what_needs_no_units(voxels: np.ndarray, change: dict[str, Any]) -> None:
    shape = voxels.shape[:2] if voxels.shape[2] == 3 else voxels.shape
    image = MedicalImage(voxels, Grid(shape, np.eye(4)))
    check_units(image, CT.model_copy(update=change), "")
