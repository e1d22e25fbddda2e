"""A bundle that needs nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_starter import small_starter

from esp_medsam_app.modalities import get_modality
from esp_medsam_app.training.starting import network_of
from esp_medsam_app.weights import backbones
from esp_medsam_app.weights.bundle import load_bundle
from esp_medsam_app.weights.carried import carry_bundle


def test_it_gives_the_same_masks_and_starts_new_modalities_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(small_starter(tmp_path / "bundle"))
    before = bundle.load_network()
    liver = get_modality("ct_liver")
    fresh_before = network_of(bundle, liver)
    carry_bundle(bundle, tmp_path / "carried", ["microscopy_nuclei"])
    alone = carry_bundle(bundle, tmp_path / "alone", [])

    def missing(*_: object) -> object:
        return None

    # as where the package of the backbone is not installed
    monkeypatch.setattr(backbones.importlib.util, "find_spec", missing)
    carried = load_bundle(tmp_path / "carried")
    carried.verify()
    after = carried.load_network()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, two = (network(image).mask_logits for network in (before, after))
    assert (one - two).abs().mean() < 0.02 * one.abs().mean()
    fresh = network_of(carried, liver)
    for key, value in fresh.queries["ct_liver"].state_dict().items():
        assert torch.allclose(value, fresh_before.queries["ct_liver"].state_dict()[key], atol=1e-3)
    assert not load_bundle(alone.path).modalities
    size = sum(file.stat().st_size for file in (tmp_path / "alone").rglob("*.safetensors"))
    assert size < 20e6
