"""The fused encoder has the plain one's function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esp_medsam_app.networks import fused_tiny_vit
from esp_medsam_app.networks.fused_tiny_vit import FusedTinyViT
from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.networks.tiny_vit import TinyViT


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """Weights, biases and statistics that leave nothing neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise.abs() + 0.5)
            else:
                tensor.add_(0.1 * noise)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[1, 4])
def encoder(request: pytest.FixtureRequest) -> TinyViT:
    torch.manual_seed(0)
    encoder = TinyViT(stem_stride=request.param)
    shaken(encoder, 1)
    return encoder


@pytest.fixture(scope="module")
def controller(encoder: TinyViT) -> ModalityController:
    controller = ModalityController(encoder.attention_widths)
    shaken(controller, 2)
    return controller


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# a grid of whole windows, of broken ones, one narrower than a window, and one that is no square
@pytest.mark.parametrize("size", [(56, 56), (64, 64), (20, 20), (48, 72)])
@pytest.mark.parametrize("controlled", [True, False])
def test_it_equals_the_plain_encoder(
    encoder: TinyViT, controller: ModalityController, size: tuple[int, int], controlled: bool
) -> None:
    height, width = (side * encoder.stem_stride for side in size)
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))
    chosen = controller if controlled else None
    fused = FusedTinyViT(encoder)
    wanted = encoder(image, chosen)
    found = fused(image, fused.fuse(chosen))
    assert found.shape == wanted.shape
    assert apart(found, wanted) < 1e-5


def test_inner_maps_are_those_of_the_plain_encoder(encoder: TinyViT) -> None:
    side = 32 * encoder.stem_stride
    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    fused = FusedTinyViT(encoder)
    wanted = encoder.features(image)
    found = fused.features(image, fused.fuse(None))
    for one, other in zip(
        (*found.inner, found.embedding), (*wanted.inner, wanted.embedding), strict=True
    ):
        assert one.shape == other.shape
        assert apart(one, other) < 1e-5


def test_strips_and_chunks_change_nothing(
    encoder: TinyViT, controller: ModalityController, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 44 * encoder.stem_stride
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(4))
    wanted = encoder(image, controller)
    fused = FusedTinyViT(encoder)
    for strip, chunk in ((6, 17), (1000, 100_000)):
        monkeypatch.setattr(fused_tiny_vit, "STRIP", strip)
        monkeypatch.setattr(fused_tiny_vit, "CHUNK", chunk)
        assert apart(fused(image, fused.fuse(controller)), wanted) < 1e-5


def test_bfloat16_is_no_further_off_than_autocast(
    encoder: TinyViT, controller: ModalityController
) -> None:
    side = 64 * encoder.stem_stride
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    wanted = encoder(image, controller)
    with torch.autocast("cpu", torch.bfloat16):
        plain = encoder(image, controller).float()
    fused = FusedTinyViT(encoder, torch.bfloat16)
    found = fused(image, fused.fuse(controller)).float()
    assert apart(found, wanted) < 1.5 * apart(plain, wanted) < 0.1


def test_a_controller_leaves_no_trace(encoder: TinyViT, controller: ModalityController) -> None:
    side = 28 * encoder.stem_stride
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(6))
    fused = FusedTinyViT(encoder)
    without = fused.fuse(None)
    first = fused(image, without)
    assert apart(fused(image, fused.fuse(controller)), first) > 1e-3
    assert torch.equal(fused(image, without), first)
