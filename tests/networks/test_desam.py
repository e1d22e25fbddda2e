"""DeSAM's parts: shapes over both kinds of encoders, and what a prompt may change."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from esp_medsam_app.networks import DeSam, TinyViT
from esp_medsam_app.networks.desam import PromptDecoupledModule
from esp_medsam_app.networks.features import InnerMap
from esp_medsam_app.networks.sam_features import SamFeatures
from esp_medsam_app.networks.sam_teacher import SamInput


def small_vit(global_blocks: tuple[int, ...] = (1, 2, 4, 5)) -> ImageEncoderViT:
    return ImageEncoderViT(
        img_size=128,
        embed_dim=32,
        depth=6,
        num_heads=2,
        out_chans=256,
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=global_blocks,
    )


@pytest.fixture
def network() -> DeSam:
    torch.manual_seed(0)
    network = DeSam(TinyViT())
    network.add_modality("two", 2)
    return network.eval().requires_grad_(False)


def test_over_the_tiny_vit_masks_have_the_images_size(network: DeSam) -> None:
    images = torch.rand(3, 3, 32, 32)
    features = network.encode(images)
    assert [tuple(part.shape[1:]) for part in features.inner] == [
        (128, 16, 16),
        (160, 8, 8),
        (320, 8, 8),
    ]
    torch.testing.assert_close(features.embedding, network.encoder(images), rtol=0, atol=0)
    masks, iou = network(features, "two", network.whole_box(3))
    assert masks.shape == (3, 2, 32, 32)
    assert iou.shape == (3, 2)


def test_over_a_sam_vit_maps_come_after_global_attention() -> None:
    torch.manual_seed(0)
    vit = small_vit()
    seen = []
    for index in (1, 2, 4):
        vit.blocks[index].register_forward_hook(lambda *call: seen.append(call[2]))
    encoder = SamFeatures(vit, SamInput(128)).eval()
    network = DeSam(encoder).eval()
    network.add_modality("one", 1)
    with torch.inference_mode():
        features = network.encode(torch.rand(1, 3, 32, 32))
        masks, _ = network(features, "one", network.whole_box())
    for found, expected in zip(features.inner, seen, strict=True):
        assert torch.equal(found, expected.permute(0, 3, 1, 2))
    assert masks.shape == (1, 1, 32, 32)
    assert not any(parameter.requires_grad for parameter in vit.parameters())


def test_a_vit_without_four_global_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="globally"):
        SamFeatures(small_vit((1, 5)))


def test_a_map_that_cannot_be_brought_to_its_level_is_refused() -> None:
    with pytest.raises(ValueError, match="side"):
        PromptDecoupledModule([InnerMap(8), InnerMap(8), InnerMap(8, 2)])


def test_prompts_share_one_embedding(network: DeSam) -> None:
    """Prompts in one pass give what each gives alone, and differ among themselves."""
    embedding = network.encode(torch.rand(1, 3, 32, 32)).embedding
    tokens = network.points(torch.tensor([[100.0, 200.0], [900.0, 50.0]]))
    together = network.relate("two", embedding, tokens)
    for index in range(2):
        alone = network.relate("two", embedding, tokens[index : index + 1])
        torch.testing.assert_close(together.mask_embedding[index], alone.mask_embedding[0])
        torch.testing.assert_close(together.iou[index], alone.iou[0])
    assert not torch.allclose(together.iou[0], together.iou[1])


def test_what_is_added_to_a_sharing_network_leaves_the_other_alone(network: DeSam) -> None:
    other = network.sharing()
    other.add_modality("more", 1)
    assert network.modalities == ["two"]
    assert other.decoder("two") is network.decoder("two")
    assert other.encoder is network.encoder
