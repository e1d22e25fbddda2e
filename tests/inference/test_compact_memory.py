"""What a modality costs in memory, and that its masks are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from esp_medsam_app.inference import Segmenter
from esp_medsam_app.networks.compact_linear import CompactLinear
from esp_medsam_app.networks.modality_controller import NormMlp
from esp_medsam_app.weights import Bundle, load_bundle
from esp_medsam_app.weights.compact import compact_in_memory

SIDE = 64
# the bound of a modality: bytes
MOST = 7_000_000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle()


def held(*modules: nn.Module) -> int:
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_every_modality_of_the_starter_bundle_is_small(bundle: Bundle) -> None:
    network = Segmenter(bundle, device="cpu")._network
    for name in network.modalities:
        controller = network.controller(name)
        assert controller is not None
        assert held(controller, network.queries[name]) < MOST, name


def test_not_a_bit_of_the_weights_changes(bundle: Bundle) -> None:
    modality = bundle.modality("dermoscopy").name
    network, compacted = (bundle.load_network([modality]) for _ in range(2))
    compact_in_memory(compacted)
    layers = dict(network.named_modules())
    count = 0
    for path, layer in compacted.named_modules():
        if isinstance(layer, CompactLinear):
            count += 1
            assert torch.equal(layer.weight, layers[path].weight)
            assert torch.equal(layer.bias, layers[path].bias)
    assert count == 20
    tiles = torch.rand(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.equal(compacted(tiles, modality)[0], network(tiles, modality)[0])
    assert sum(p.numel() for p in compacted.parameters()) == sum(
        p.numel() for p in network.parameters()
    )


def test_counted_parameters_are_those_of_the_plain_network(bundle: Bundle) -> None:
    plain, fast = (Segmenter(bundle, device="cpu", fast=fast) for fast in (False, True))
    assert fast.parameters("dermoscopy") == plain.parameters("dermoscopy")
    assert not any(isinstance(m, CompactLinear) for m in plain._network.modules())


def test_weights_that_eight_bits_do_not_hold_stay(bundle: Bundle) -> None:
    network = bundle.load_network(["dermoscopy"])
    expert = network.controllers["dermoscopy"][0].expert
    assert isinstance(expert, NormMlp)
    with torch.no_grad():
        expert.fc1.weight[0, 0] += 1e-4
    compact_in_memory(network)
    assert isinstance(expert.fc1, nn.Linear)
    assert isinstance(expert.fc2, CompactLinear)


def test_twice_is_once(bundle: Bundle, tmp_path: Path) -> None:
    network = bundle.load_network(["dermoscopy"])
    compact_in_memory(network)
    layers = list(network.modules())
    compact_in_memory(network)
    assert all(a is b for a, b in zip(network.modules(), layers, strict=True))
