"""The DeSAM authors' decoder and ours compute the same function.

The reference outputs are not part of this repository; see test_official_parity.py. Here the files
are `fill.py`, `desam_vit_b_state_dict.json` and `desam_golden.npz`.

With two threads, on the kind of processor that made the reference, ours is equal to the last bit;
elsewhere sums are taken in another order, which this network of random weights makes 3e-4 and more
of: what rounding explains is allowed (`support.parity`).
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.parity import exact, reach, relative_error
from torch import nn

from esp_medsam_app.networks import DeSam
from esp_medsam_app.networks.desam import DeSamOutput
from esp_medsam_app.networks.features import Features, InnerMap
from esp_medsam_app.weights.official_desam import load_official_desam

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "parity"
PARITY = Path(os.environ.get("ESP_MEDSAM_PARITY", BESIDE))
pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(
        not (PARITY / "desam_golden.npz").is_file(), reason="no reference outputs on this machine"
    ),
]
Fill = Callable[[str, tuple[int, ...]], np.ndarray]


class NoEncoder(nn.Linear):
    """Stands for the encoder, whose features are given."""

    inner_maps = (InnerMap(768), InnerMap(768), InnerMap(768))


@pytest.fixture(scope="module")
def fill() -> Fill:
    spec = importlib.util.spec_from_file_location("parity_fill", PARITY / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


@pytest.fixture(scope="module")
def network(fill: Fill, tmp_path_factory: pytest.TempPathFactory) -> DeSam:
    shapes = json.loads((PARITY / "desam_vit_b_state_dict.json").read_text())
    state = {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("official") / "desam.pth"
    torch.save(state, path)
    official = load_official_desam(path)
    assert official.width == 768
    network = DeSam(NoEncoder(1, 1))
    network.prompt_encoder = official.prompt_encoder
    network.add_modality("official", official.decoder)
    return network.eval()


@pytest.fixture(scope="module")
def features(fill: Fill) -> Features:
    def made(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(fill(name, shape) * np.float32(np.sqrt(np.prod(shape))))

    inner = [made(f"feature_{i}", (1, 768, 64, 64)) for i in range(3)]
    return Features((inner[0], inner[1], inner[2]), made("feature_neck", (1, 256, 64, 64)))


@pytest.mark.parametrize("prompt", ["whole_box", "point"])
def test_masks_and_iou(network: DeSam, features: Features, prompt: str) -> None:
    box = prompt == "whole_box"
    with torch.inference_mode():
        tokens = network.whole_box() if box else network.points(torch.tensor([[300.0, 500.0]]))
        output: DeSamOutput = network(features, "official", tokens)
        inner, embedding = features
        shallow, middle, deep = (each.double() for each in inner)
        precise = Features((shallow, middle, deep), embedding.double())
        in_float64: DeSamOutput = exact(network)(precise, "official", tokens.double())
    # else this would pass whatever the masks are
    assert relative_error(output.mask_logits, in_float64.mask_logits) < 5e-3
    with np.load(PARITY / "desam_golden.npz") as golden:
        for found, precisely, expected in (
            (
                output.mask_logits[0, 0, ::2, ::2],
                in_float64.mask_logits[0, 0, ::2, ::2],
                golden[f"{prompt}_mask_logits_stride2"],
            ),
            (output.iou[0], in_float64.iou[0], golden[f"{prompt}_iou"]),
        ):
            assert relative_error(found, expected) < reach(found, precisely)
