"""The fast path gives the plain path's masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import Segmenter, fast_network
from esp_medsam_app.inference.fast_network import FastNetwork
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.samples import phantoms
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import Bundle

SIDE = 64


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The starter bundle: weights that have learned something."""
    return load_bundle()


@pytest.fixture(scope="module")
def network(bundle: Bundle) -> EspMedSam:
    return bundle.load_network(["dermoscopy", "mr_hippocampus"])


def tiles(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("modality", ["dermoscopy", "mr_hippocampus"])
def test_logits_are_those_of_the_plain_path(network: EspMedSam, modality: str) -> None:
    with torch.inference_mode():
        wanted = network(tiles(), modality)
        found = FastNetwork(network, torch.float32)(tiles(), modality)
    for name in wanted._fields:
        plain, fast = getattr(wanted, name), getattr(found, name)
        assert fast.shape == plain.shape
        assert (fast - plain).norm() < 1e-4 * plain.norm(), name


def test_few_controllers_stay_fused(network: EspMedSam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_network, "FUSED_CONTROLLERS", 1)
    fast = FastNetwork(network, torch.float32)
    with torch.inference_mode():
        first = fast(tiles(), "dermoscopy").mask_logits
        fast(tiles(), "mr_hippocampus")
        assert len(fast._fused) == 1
        assert torch.equal(fast(tiles(), "dermoscopy").mask_logits, first)


def picture(folder: Path) -> MedicalImage:
    voxels = phantoms.nuclei().pixels
    grid = Grid(
        shape=voxels.shape[:2], affine=np.eye(4), has_patient_space=False, nifti_header=None
    )
    return MedicalImage(voxels=voxels, grid=grid, path=folder / "picture.png", dicom_modality=None)


def test_masks_are_those_of_the_plain_path_in_each_precision(
    bundle: Bundle, tmp_path: Path
) -> None:
    image = picture(tmp_path)
    plain = Segmenter(bundle, device="cpu", precision="float32", fast=False)
    wanted = plain.segment(image, "microscopy_nuclei") > 0
    assert wanted.mean() > 0.05
    for precision, least in (("float32", 0.9999), ("bfloat16", 0.99), ("float16", 0.998)):
        fast = Segmenter(bundle, device="cpu", precision=precision)
        found = fast.segment(image, "microscopy_nuclei") > 0
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) >= least


@pytest.mark.parametrize("fast", [True, False])
def test_a_modality_that_needs_float32_gets_it_unless_asked_otherwise(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    told = bundle.description.model_copy(update={"precision": {"dermoscopy": "float32"}})
    one_needs_it = replace(bundle, description=told)
    by_itself = Segmenter(one_needs_it, device="cpu", fast=fast)
    exact = Segmenter(bundle, device="cpu", precision="float32", fast=fast)
    asked = Segmenter(one_needs_it, device="cpu", precision="bfloat16", fast=fast)
    found = {
        name: [s.logits(tiles(), name) for s in (by_itself, exact, asked)]
        for name in ("dermoscopy", "xray_chest")
    }
    assert torch.equal(found["dermoscopy"][0], found["dermoscopy"][1])
    assert not torch.equal(found["dermoscopy"][0], found["dermoscopy"][2])
    assert torch.equal(found["xray_chest"][0], found["xray_chest"][2])
    assert not torch.equal(found["xray_chest"][0], found["xray_chest"][1])
    # another version of the weights is served the same way
    after = by_itself.with_bundle(one_needs_it)
    assert torch.equal(after.logits(tiles(), "dermoscopy"), found["dermoscopy"][0])


def test_an_unknown_precision_is_named(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no precision 'int3'"):
        Segmenter(bundle, device="cpu", precision="int3")
