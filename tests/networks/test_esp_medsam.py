"""Behaviour of the network with small, random weights and small images."""

from __future__ import annotations

import pytest
import torch

from esp_medsam_app.networks import EspMedSam, ModalityController, TinyViT

SIZE = 64


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network() -> EspMedSam:
    torch.manual_seed(0)
    network = EspMedSam(TinyViT(stem_stride=1))
    network.add_modality("ct_liver", 1)
    network.add_modality("xray_chest", 3)
    return network.eval().requires_grad_(False)


def trained(network: EspMedSam, name: str) -> None:
    """Give a modality's controller values as training would, so that it does something."""
    generator = torch.Generator().manual_seed(7)
    for parameter in network.controller(name).parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_shapes(network: EspMedSam, image: torch.Tensor) -> None:
    output = network(image, "xray_chest")
    assert output.mask_logits.shape == (2, 3, SIZE, SIZE)
    assert output.patch_logits.shape == (2, 1, SIZE // 8, SIZE // 8)
    assert output.image_embedding.shape == (2, 256, SIZE // 4, SIZE // 4)


@pytest.mark.parametrize(("stride", "size"), [(1, 32), (1, 92), (4, 128), (4, 160)])
def test_any_size_that_leaves_a_whole_grid(stride: int, size: int) -> None:
    encoder = TinyViT(stride).eval().requires_grad_(False)
    embedding = encoder(torch.rand(1, 3, size, size))
    assert embedding.shape[-2:] == (size // (4 * stride),) * 2


def test_size_that_leaves_no_whole_grid(network: EspMedSam) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        network(torch.rand(1, 3, 62, 62), "ct_liver")


def test_batch_gives_what_single_images_give(network: EspMedSam, image: torch.Tensor) -> None:
    trained(network, "xray_chest")
    batch = network(image, "xray_chest")
    for index in range(len(image)):
        single = network(image[index : index + 1], "xray_chest")
        for whole, part in zip(batch, single, strict=True):
            torch.testing.assert_close(whole[index : index + 1], part, rtol=1e-4, atol=1e-5)


def test_query_alone_gives_its_channel(network: EspMedSam, image: torch.Tensor) -> None:
    every = network(image, "xray_chest").mask_logits
    for query in range(3):
        alone = network(image, "xray_chest", query=query).mask_logits
        torch.testing.assert_close(alone, every[:, query : query + 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("query", [-1, 3])
def test_unknown_query(network: EspMedSam, image: torch.Tensor, query: int) -> None:
    with pytest.raises(IndexError, match=r"outside 0\.\.2"):
        network(image, "xray_chest", query=query)


def test_unknown_modality(network: EspMedSam, image: torch.Tensor) -> None:
    with pytest.raises(KeyError):
        network(image, "ct_spleen")
    with pytest.raises(KeyError, match="name one of"):
        network(image)


def test_fresh_controller_leaves_the_backbone_as_it_is(image: torch.Tensor) -> None:
    """Within 1e-4 of the embedding's norm: the tokens' logits are -8, not minus infinity."""
    torch.manual_seed(0)
    encoder = TinyViT(stem_stride=1).eval().requires_grad_(False)
    plain = encoder(image)
    controlled = encoder(image, ModalityController(encoder.attention_widths))
    assert (controlled - plain).norm() / plain.norm() < 1e-4


def test_fresh_controller_learns(image: torch.Tensor) -> None:
    """Every parameter that starts neutral receives a gradient, or frees one after a step."""
    torch.manual_seed(0)
    encoder = TinyViT(stem_stride=1).eval().requires_grad_(False)
    controller = ModalityController(encoder.attention_widths)
    target = torch.randn(2, 256, SIZE // 4, SIZE // 4)
    optimiser = torch.optim.SGD(controller.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (encoder(image, controller) - target).square().mean().backward()
        optimiser.step()
    silent = [
        name
        for name, parameter in controller.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert silent == []


def test_modalities_do_not_touch_each_other(network: EspMedSam, image: torch.Tensor) -> None:
    before = network(image, "ct_liver").mask_logits
    trained(network, "xray_chest")
    network.add_modality("fundus_vessels", 1)
    assert network.modalities == ["ct_liver", "xray_chest", "fundus_vessels"]
    assert torch.equal(network(image, "ct_liver").mask_logits, before)
    network.remove_modality("xray_chest")
    assert network.modalities == ["ct_liver", "fundus_vessels"]
    assert torch.equal(network(image, "ct_liver").mask_logits, before)
    with pytest.raises(KeyError):
        network(image, "xray_chest")


def test_controller_is_swapped_at_run_time(network: EspMedSam, image: torch.Tensor) -> None:
    before = network(image, "ct_liver")
    queries = network.queries["ct_liver"]
    old = network.controller("ct_liver")
    network.add_modality("ct_liver", queries, ModalityController(network.encoder.attention_widths))
    trained(network, "ct_liver")
    assert not torch.allclose(network(image, "ct_liver").image_embedding, before.image_embedding)
    network.add_modality("ct_liver", queries, old)
    assert torch.equal(network(image, "ct_liver").mask_logits, before.mask_logits)


def test_cache_point_gives_the_whole_pass(network: EspMedSam, image: torch.Tensor) -> None:
    """What training caches and goes on from is what inference computes in one go."""
    trained(network, "ct_liver")
    controller = network.controller("ct_liver")
    whole = network.encoder(image, controller)
    for stage in (1, 2, 3):
        half = network.encoder.encode_until(image, stage, controller)
        assert torch.equal(network.encoder.encode_from(half, stage, controller), whole)


def test_bfloat16_stays_near_float32(network: EspMedSam, image: torch.Tensor) -> None:
    plain = network(image, "ct_liver").image_embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(image, "ct_liver").image_embedding
    assert (rough.float() - plain).norm() / plain.norm() < 0.05
