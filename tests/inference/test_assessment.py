"""How sure the network is: figures from maps made by hand, and from a small network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError, OutOfMemoryError, UnknownNameError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.assessment import (
    Assessment,
    assess_slicewise,
    disagreement_sums,
    entropy_sums,
)
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.networks import Segmentation
from esp_medsam_app.networks.fused_tiny_vit import FusedController, FusedTinyViT
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights import Bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM

CPU = torch.device("cpu")
TILE = 64
PLAIN = Modality(name="plain", title="", description="", dimension=3, labels={"a": 1})
TILED = Modality(
    name="tiled", title="", description="", dimension=2, labels={"a": 1, "b": 2},
    tiles=Tiles(least=2, most=2),
)  # fmt: skip
SURE = 20.0


def image_of(voxels: np.ndarray) -> MedicalImage:
    return MedicalImage(voxels, Grid(voxels.shape, np.eye(4), has_patient_space=False))


def disc(side: int, *, sharpness: float = SURE, radius: float = 12.5) -> torch.Tensor:
    """Logits `[1, 1, side, side]` of a disc around (20, 20), whose edge is 1/sharpness wide."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = ((rows - 20.0) ** 2 + (columns - 20.0) ** 2).sqrt()
    return (sharpness * (radius - distance)).clamp(-SURE, SURE)[None, None]


def mean_entropy(logits: torch.Tensor) -> float:
    bits, pixels = entropy_sums(logits)[0].tolist()
    return bits / pixels


def distance(patches: torch.Tensor, masks: torch.Tensor) -> float:
    apart, whole, _ = disagreement_sums(patches, masks, 8)[0].tolist()
    return apart / max(whole, 1)


# --- the figures ---------------------------------------------------------------------------------


def test_entropy_is_a_bit_where_the_network_cannot_decide() -> None:
    assert entropy_sums(torch.zeros(1, 1, 8, 8))[0].tolist() == pytest.approx([64, 64])


def test_entropy_is_not_a_matter_of_the_background() -> None:
    """A mean over the image would fall to a quarter."""
    small, large = (mean_entropy(disc(side, sharpness=1)) for side in (64, 128))
    assert small == pytest.approx(large, rel=1e-3)
    assert small > 0.1


def test_entropy_grows_with_the_doubtful_band() -> None:
    found = [mean_entropy(disc(64, sharpness=s)) for s in (10, 2, 1, 0.5, 0.25)]
    assert found == sorted(found)
    assert found[0] < 0.1 < 0.5 < found[-1]


def test_a_faint_haze_is_no_structure() -> None:
    bits, pixels = entropy_sums(torch.full((1, 1, 32, 32), -4.0))[0].tolist()
    assert (bits, pixels) == (0, 0)


def test_patches_that_agree_with_the_masks() -> None:
    masks = disc(64)
    patches = F.max_pool2d(masks, 8)
    assert distance(patches, masks) == pytest.approx(0, abs=1e-6)
    assert distance(-patches, masks) > 0.99


def test_labels_are_one_structure_to_the_patches() -> None:
    left, right = disc(64).clone(), disc(64).clone()
    left[..., 20:], right[..., :20] = -SURE, -SURE
    assert distance(F.max_pool2d(disc(64), 8), torch.cat([left, right], 1)) < 1e-6


def test_both_empty_is_agreement() -> None:
    assert distance(torch.full((1, 1, 8, 8), -3.0), torch.full((1, 1, 64, 64), -9.0)) == 0


@given(st.integers(0, 2**32 - 1))
def test_disagreement_lies_between_none_and_all(seed: int) -> None:
    torch.manual_seed(seed)
    assert 0 <= distance(torch.randn(1, 1, 8, 8) * 5, torch.randn(1, 2, 64, 64) * 5) <= 1


# --- images and volumes --------------------------------------------------------------------------


def assess(
    voxels: np.ndarray, look: Callable[[torch.Tensor], Segmentation], **options: Any
) -> Assessment:
    return assess_slicewise(
        image_of(voxels), PLAIN, look, tile=TILE, device=CPU, batch_size=2, **options
    )


def by_brightness(tiles: torch.Tensor) -> Segmentation:
    """Undecided about grey pixels, sure of black ones; the embedding is the brightness."""
    grey = tiles[:, :1]
    masks = torch.where(grey > 0, 0.0, -SURE)
    return Segmentation(masks, F.max_pool2d(masks, 8), F.avg_pool2d(grey, 4).repeat(1, 3, 1, 1))


def test_a_volume_is_as_uncertain_as_its_worst_quarter() -> None:
    voxels = np.zeros((TILE, TILE, 8), np.float32)
    voxels[8:40, 8:40, 5] = 1
    voxels[8:40, 8:40, 2] = 0.5
    whole = assess(voxels, by_brightness)
    assert (whole.entropy, whole.disagreement, whole.slices) == (pytest.approx(1), 0, 8)
    assert whole.uncertainty == pytest.approx(0.5)
    voxels[..., 2] = 0
    assert assess(voxels, by_brightness).entropy == pytest.approx(0.5)


def test_a_part_of_the_slices_evenly_spread() -> None:
    seen: list[float] = []

    def look(tiles: torch.Tensor) -> Segmentation:
        seen.extend(tiles[:, 0].mean(dim=(1, 2)).tolist())
        return by_brightness(tiles)

    voxels = np.ones((TILE, TILE, 1), np.float32) * np.arange(10, dtype=np.float32)
    assert assess(voxels, look, most_slices=5).slices == 5
    assert np.array(seen) * 9 == pytest.approx([1, 3, 5, 7, 9])


def test_padding_is_no_part_of_the_image() -> None:
    """A slice twice as wide as high fills half of the tile."""
    voxels = np.ones((TILE, TILE // 2), np.float32)
    voxels[0, 0] = 0
    found = assess(voxels, by_brightness)
    assert found.embedding == pytest.approx(np.full(3, 1 - 1 / voxels.size), rel=1e-4)


def test_before_each_pass_others_may_have_the_device() -> None:
    calls: list[str] = []

    def look(tiles: torch.Tensor) -> Segmentation:
        calls.append("pass")
        return by_brightness(tiles)

    voxels = np.random.default_rng(0).random((TILE, TILE, 5)).astype(np.float32)
    assess(voxels, look, before_pass=lambda: calls.append("free"))
    assert calls == ["free", "pass"] * 3

    class EnoughError(Exception):
        pass

    def enough() -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        assess(voxels, look, before_pass=enough)


def test_nothing_to_see_and_no_memory() -> None:
    with pytest.raises(InputError, match="all voxels"):
        assess(np.ones((TILE, TILE)), by_brightness)

    def full(tiles: torch.Tensor) -> Segmentation:
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="single tile"):
        assess(np.random.default_rng(0).random((TILE, TILE)), full)


# --- the network ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    torch.manual_seed(0)
    written: Bundle = save_bundle(
        tmp_path_factory.mktemp("bundle"),
        new_network(LITE_MEDSAM, [PLAIN, TILED]),
        [PLAIN, TILED],
        name="test",
        backbone=LITE_MEDSAM,
        training={},
    )
    small = written.description.model_copy(update={"input_size": TILE})
    return Segmenter(replace(written, description=small), device="cpu", batch_size=2)


@pytest.fixture
def noise() -> MedicalImage:
    return image_of(np.random.default_rng(0).random((TILE, TILE, 3)).astype(np.float32))


def test_one_pass_through_the_encoder(
    segmenter: Segmenter, noise: MedicalImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    once = FusedTinyViT.__call__

    def counting(encoder: FusedTinyViT, image: Tensor, controller: FusedController) -> Tensor:
        seen.append(len(image))
        return once(encoder, image, controller)

    monkeypatch.setattr(FusedTinyViT, "__call__", counting)
    found = segmenter.assess(noise, "plain")
    assert sum(seen) == found.slices == 3
    assert found.embedding.shape == (256,)
    assert found.embedding.dtype == np.float32
    assert 0 < found.uncertainty < 1
    assert found.uncertainty == pytest.approx((found.entropy + found.disagreement) / 2)


def test_tiles_and_batches_do_not_matter(segmenter: Segmenter, noise: MedicalImage) -> None:
    flat = image_of(noise.voxels[..., 0])
    one, many = (segmenter.assess(flat, "tiled", batch_size=size) for size in (1, 4))
    assert one.slices == 1
    assert one.uncertainty == pytest.approx(many.uncertainty, abs=1e-3)
    assert np.allclose(one.embedding, many.embedding, atol=1e-3)


def test_unknown_modality(segmenter: Segmenter, noise: MedicalImage) -> None:
    with pytest.raises(UnknownNameError, match="Available: plain, tiled"):
        segmenter.assess(noise, "ct_spleen")


def test_a_modality_that_is_not_trained_yet_has_an_embedding(
    segmenter: Segmenter, noise: MedicalImage
) -> None:
    found = segmenter.assess(noise, PLAIN.model_copy(update={"name": "new"}))
    assert (found.uncertainty, found.disagreement, found.entropy) == (0, 0, 0)
    # a fresh controller changes nothing
    assert np.allclose(found.embedding, segmenter.assess(noise, "plain").embedding, atol=0.02)
