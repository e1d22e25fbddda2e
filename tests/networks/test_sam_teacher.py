"""The teacher: SAM's ViT, bit by bit without adapters; what the adapters add to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from esp_medsam_app.networks.esp_medsam import Design, EspMedSam
from esp_medsam_app.networks.sam_teacher import (
    SAM_PIXEL_MEAN,
    SAM_PIXEL_STD,
    BlockAdapter,
    SamAdapters,
    SamInput,
    SamTeacher,
)

SIZE = 128
PATCH = 16


def small_vit(
    grid: int = SIZE // PATCH, window: int = 3, relative: bool = True, seed: int = 0
) -> ImageEncoderViT:
    """Two windowed blocks and a global one, with positions that matter."""
    torch.manual_seed(seed)
    vit = ImageEncoderViT(
        img_size=PATCH * grid,
        embed_dim=24,
        depth=3,
        num_heads=3,
        out_chans=256,
        use_rel_pos=relative,
        window_size=window,
        global_attn_indexes=(2,),
    )
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.5)
    return vit.eval()


def images(size: int = SIZE, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(adapters: SamAdapters) -> SamAdapters:
    """Adapters with values as training would give them, so that they do something."""
    generator = torch.Generator().manual_seed(7)
    for parameter in adapters.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    for block in adapters.blocks:
        block.token_bias.data.fill_(1.0)
    return adapters


def silent(adapters: SamAdapters) -> SamAdapters:
    """Adapters whose tokens have no weight at all and whose experts give nothing."""
    for block in adapters.blocks:
        block.token_bias.data.fill_(-torch.inf)
    return adapters


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_plain_is_sam_bit_by_bit() -> None:
    vit, image = small_vit(), images()
    with torch.inference_mode():
        expected = vit(image)
        assert torch.equal(SamTeacher(vit)(image), expected)
        assert torch.equal(SamTeacher(vit, trained(SamAdapters(vit))).common(image), expected)


@settings(deadline=None, max_examples=25)
@given(
    grid=st.integers(1, 9),
    window=st.integers(0, 10),
    relative=st.booleans(),
    tokens=st.sampled_from([1, 3]),
)
def test_silent_adapters_leave_sam_as_it_is(
    grid: int, window: int, relative: bool, tokens: int
) -> None:
    """Their own path through windows, padding and relative positions is SAM's."""
    vit = small_vit(grid, window, relative)
    teacher = SamTeacher(vit, silent(SamAdapters(vit, tokens=tokens)))
    image = images(PATCH * grid)
    with torch.inference_mode():
        assert distance(teacher(image), vit(image)) < 1e-6


def test_fresh_adapters_change_next_to_nothing() -> None:
    vit, image = small_vit(window=7), images()
    teacher = SamTeacher(vit, SamAdapters(vit, own_neck=True))
    with torch.inference_mode():
        assert 0 < distance(teacher(image), vit(image)) < 1e-4


def test_adapters_do_something() -> None:
    vit, image = small_vit(), images()
    with torch.inference_mode():
        teacher = SamTeacher(vit, trained(SamAdapters(vit)))
        assert distance(teacher(image), teacher.common(image)) > 0.01


@pytest.mark.parametrize("tokens", [1, 2])
def test_block_is_the_papers(tokens: int) -> None:
    """A global block without relative positions, written down head by head."""
    vit = small_vit(grid=4, relative=False)
    adapters = trained(SamAdapters(vit, tokens=tokens, ratio=2.0))
    block, adapter = vit.blocks[2], adapters.blocks[2]
    assert isinstance(adapter, BlockAdapter)
    x = torch.randn(1, 4, 4, 24, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        flat = x.view(16, 24)
        queries, keys, values = block.attn.qkv(block.norm1(flat)).split(24, dim=-1)
        heads = []
        for head in range(3):
            part = slice(8 * head, 8 * head + 8)
            key = torch.cat([keys[:, part], adapter.key_token[head]])
            value = torch.cat([values[:, part], adapter.value_token[head]])
            bias = torch.cat([torch.zeros(16), adapter.token_bias]).expand(16, -1)
            heads.append(
                F.scaled_dot_product_attention(
                    queries[None, :, part], key[None], value[None], attn_mask=bias[None]
                )[0]
            )
        flat = flat + block.attn.proj(torch.cat(heads, dim=-1))
        normed = block.norm2(flat)
        hidden = F.gelu(adapter.expert.lin1(normed))
        expected = flat + block.mlp(normed) + adapter.expert.lin2(hidden)
        assert hidden.shape[-1] == 48

        found: list[torch.Tensor] = []
        vit.neck.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        vit.patch_embed = Fixed(x)
        vit.pos_embed = None
        vit.blocks, adapters.blocks = vit.blocks[2:], adapters.blocks[2:]
        adapters.widths = adapters.widths[2:]
        SamTeacher(vit, adapters)(images(64, 1))
    assert distance(found[0].permute(0, 2, 3, 1).reshape(16, 24), expected) < 1e-5


class Fixed(nn.Module):
    """Gives what it was made with, in place of the patches' embedding."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.value


@pytest.mark.parametrize("own_neck", [False, True])
def test_adapters_learn_and_the_vit_does_not(own_neck: bool) -> None:
    vit, image = small_vit(), images()
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    teacher = SamTeacher(vit, SamAdapters(vit, own_neck=own_neck))
    with torch.no_grad():
        common, start = teacher.common(image), teacher(image)
    optimiser = torch.optim.SGD(teacher.trainable(), lr=0.1)
    for _ in range(2):  # the experts' first layer has no gradient before the second step
        optimiser.zero_grad()
        # the mean of a normalised embedding would be constant
        teacher(image).pow(3).mean().backward()
        for name, parameter in teacher.named_parameters():
            assert (parameter.grad is not None) == name.startswith("adapters."), name
        optimiser.step()
    for name, parameter in teacher.adapters.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())
    with torch.no_grad():
        assert torch.equal(teacher.common(image), common)
        assert not torch.equal(teacher(image), start)


def test_trainable_is_the_adapters_alone() -> None:
    vit = small_vit()
    assert SamTeacher(vit).trainable() == []
    without, neck = SamAdapters(vit), SamAdapters(vit, own_neck=True)
    extra = len(SamTeacher(vit, neck).trainable()) - len(SamTeacher(vit, without).trainable())
    assert extra == len(list(vit.neck.parameters()))


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        vit = small_vit()
        teacher = SamTeacher(vit, trained(SamAdapters(vit)), recompute=recompute)
        teacher(images()).pow(3).mean().backward()
        gradients.append([parameter.grad for parameter in teacher.trainable()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_recomputing_keeps_less() -> None:
    """Bytes that wait for the backward pass, weights aside."""
    kept = []
    for recompute in (False, True):
        vit = small_vit()
        teacher = SamTeacher(vit, SamAdapters(vit), recompute=recompute)
        weights = {parameter.data_ptr() for parameter in teacher.parameters()}
        total = 0

        def count(tensor: torch.Tensor, weights: set[int] = weights) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes if tensor.data_ptr() not in weights else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            teacher(images())
        kept.append(total)
    assert kept[1] < kept[0] / 2  # what remains is mostly the neck's


def test_names_are_sams() -> None:
    vit = small_vit()
    names = set(SamTeacher(vit, SamAdapters(vit), SamInput(SIZE)).state_dict())
    assert {name for name in names if not name.startswith("adapters.")} == set(vit.state_dict())


def test_adapters_of_another_vit() -> None:
    other = ImageEncoderViT(img_size=64, embed_dim=16, depth=3, num_heads=2)
    with pytest.raises(ValueError, match="another ViT"):
        SamTeacher(small_vit(), SamAdapters(other))


def test_image_of_another_size() -> None:
    with pytest.raises(ValueError, match="SamInput"):
        SamTeacher(small_vit())(images(SIZE // 2))


def test_input_is_sams() -> None:
    """Normalised as `Sam.preprocess` does, which gets 0 to 255."""
    sam = Sam(small_vit(), nn.Identity(), nn.Identity(), SAM_PIXEL_MEAN, SAM_PIXEL_STD)
    image = images()
    torch.testing.assert_close(SamInput(SIZE)(image), sam.preprocess(255 * image))


def test_input_of_medsam_is_the_image_itself() -> None:
    image = images()
    torch.testing.assert_close(SamInput.unit(SIZE)(image), image)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(8, 200))
def test_input_is_resized_in_place(size: int) -> None:
    """Pixels keep their place: a ramp from edge to edge stays one, whatever its size."""
    ramp = (torch.arange(size) + 0.5) / size
    found = SamInput.unit(64)(ramp.expand(1, 3, size, size))
    expected = (torch.arange(64) + 0.5) / 64
    assert found.shape == (1, 3, 64, 64)
    inside = slice(8, -8)  # at the edges there is nothing to average with
    torch.testing.assert_close(
        found[0, 0, :, inside], expected[inside].expand(64, -1), rtol=0, atol=3e-3
    )


def test_teacher_stands_in_for_the_students_encoder() -> None:
    """Image in [0, 1] of the student's size to the student's grid, a quarter of it."""
    vit = small_vit(grid=16)
    teacher = SamTeacher(vit, SamAdapters(vit), SamInput(vit.img_size))
    network = EspMedSam(teacher, Design(controllers=False))
    network.add_modality("ct_liver", 2)
    network.eval()
    with torch.inference_mode():
        output = network(images(64), "ct_liver")
    assert output.image_embedding.shape == (2, 256, 16, 16)
    assert output.mask_logits.shape == (2, 2, 64, 64)
    assert output.patch_logits is not None
    assert output.patch_logits.shape == (2, 1, 8, 8)


def test_bfloat16_stays_near_float32() -> None:
    vit, image = small_vit(), images()
    teacher = SamTeacher(vit, trained(SamAdapters(vit)))
    with torch.inference_mode():
        plain = teacher(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = teacher(image)
    assert distance(rough.float(), plain) < 0.05
