"""The DeSAM authors' decoder and ours compute the same function.

The files of the references (`support.parity`) are `fill.py`, `desam_vit_b_state_dict.json` and
`desam_golden.npz`.

With two threads, on the kind of processor that made the reference, ours is equal to the last bit;
elsewhere sums are taken in another order, which this network of random weights makes 3e-4 and more
of: what rounding explains is allowed where the predicted IoU does not equal the reference.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.parity import (
    Fill,
    exact,
    load_fill,
    made_up_checkpoint,
    needs_reference,
    reach,
    reference,
    relative_error,
)
from torch import nn

from esp_medsam_app.networks import DeSam
from esp_medsam_app.networks.desam import DeSamOutput
from esp_medsam_app.networks.features import Features, InnerMap
from esp_medsam_app.weights.official_desam import load_official_desam

GOLDEN = "desam_golden.npz"
pytestmark = [pytest.mark.usefixtures("two_threads"), needs_reference(GOLDEN)]


class NoEncoder(nn.Linear):
    """Stands for the encoder, whose features are given."""

    inner_maps = (InnerMap(768), InnerMap(768), InnerMap(768))


@pytest.fixture(scope="module")
def fill() -> Fill:
    return load_fill()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> DeSam:
    path = tmp_path_factory.mktemp("official") / "desam.pth"
    made_up_checkpoint("desam_vit_b_state_dict.json", path)
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
    golden = reference(GOLDEN)
    same_sums = np.array_equal(output.iou[0].numpy(), golden[f"{prompt}_iou"])
    for found, precisely, expected in (
        (
            output.mask_logits[0, 0, ::2, ::2],
            in_float64.mask_logits[0, 0, ::2, ::2],
            golden[f"{prompt}_mask_logits_stride2"],
        ),
        (output.iou[0], in_float64.iou[0], golden[f"{prompt}_iou"]),
    ):
        allowed = reach(found, precisely, same_sums=same_sums)
        assert relative_error(found, expected) < allowed
