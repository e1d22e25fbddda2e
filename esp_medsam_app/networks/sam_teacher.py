"""The teacher of the knowledge distillation (MMDKD): SAM's ViT, plain and with medical adapters.

ESP-MedSAM (arXiv 2407.14153, figure of the framework) distils two kinds of knowledge out of one
frozen ViT: common knowledge from the ViT as it is, medical knowledge from the ViT with, in every
block, a learned key token beside K, a learned value token beside V, and an expert MLP beside the
block's own, on the same LayerNorm's output. The paper prints neither the expert's width nor the
tokens' number; the defaults are those of the student's controllers.

`SamTeacher` takes the modules of segment-anything's `ImageEncoderViT` under their own names, so
that the released checkpoints fit. It is an encoder for `EspMedSam` with a design without
controllers: one set of adapters serves all modalities, which the decoder's queries tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    add_decomposed_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esp_medsam_app.networks.modality_controller import FRESH_TOKEN_BIAS

# SAM's input: RGB of 0 to 255, less this mean, over this deviation.
SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)


class SamInput(nn.Module):
    """Images `[B, 3, S, S]` in [0, 1] to what a SAM ViT expects, `[B, 3, size, size]`.

    Of an image of any size the ViT makes the same grid, `size / 16`: 64 x 64 for the released
    ones, which is the student's for an image of 256.

    Args:
        size: side of the ViT's input, pixels (`ImageEncoderViT.img_size`).
        mean: subtracted from the RGB values of 0 to 255.
        std: they are divided by it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        mean: Sequence[float] = SAM_PIXEL_MEAN,
        std: Sequence[float] = SAM_PIXEL_STD,
    ) -> None:
        super().__init__()
        self.size = size
        # Constants, no weights: a checkpoint of the teacher holds the ViT's names alone.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def unit(cls, size: int) -> SamInput:
        """Resizing alone: MedSAM's ViT was trained on [0, 1], without SAM's mean and deviation."""
        return cls(size, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(
                image,
                size=(self.size, self.size),
                mode="bilinear",
                align_corners=False,
                antialias=True,
            )
        return (255 * image - self.mean) / self.std


class BlockAdapter(nn.Module):
    """What one ViT block gets for medical images.

    Attributes:
        key_token: `[heads, tokens, head_dim]`, appended to the block's keys.
        value_token: `[heads, tokens, head_dim]`, appended to its values.
        token_bias: `[tokens]`, added to the attention logits of those columns.
        expert: MLP in parallel with the block's own, without a LayerNorm of its own.
    """

    def __init__(self, dim: int, heads: int, tokens: int = 1, ratio: float = 4.0) -> None:
        super().__init__()
        self.key_token = nn.Parameter(torch.empty(heads, tokens, dim // heads))
        self.value_token = nn.Parameter(torch.empty(heads, tokens, dim // heads))
        self.token_bias = nn.Parameter(torch.full((tokens,), FRESH_TOKEN_BIAS))
        self.expert = MLPBlock(embedding_dim=dim, mlp_dim=max(1, round(ratio * dim)))
        nn.init.trunc_normal_(self.key_token, std=0.02)
        nn.init.trunc_normal_(self.value_token, std=0.02)
        nn.init.zeros_(self.expert.lin2.weight)
        nn.init.zeros_(self.expert.lin2.bias)


class SamAdapters(nn.Module):
    """The adapters of all blocks of a ViT; fresh ones change its embedding by less than 1e-4.

    Args:
        vit: what they are made for; it is not kept.
        tokens: learned keys and values of each block.
        ratio: hidden width of the experts over the ViT's width.
        own_neck: also keep a copy of the ViT's neck, to be trained in its place. The ViT's own
            stays as it is, and so does the common knowledge.
    """

    def __init__(
        self, vit: ImageEncoderViT, tokens: int = 1, ratio: float = 4.0, own_neck: bool = False
    ) -> None:
        super().__init__()
        self.widths = _widths(vit)
        self.blocks = nn.ModuleList(
            BlockAdapter(dim, heads, tokens, ratio) for dim, heads in self.widths
        )
        self.neck = _copied_neck(vit) if own_neck else None


class SamTeacher(nn.Module):
    """SAM's ViT with or without medical adapters: images to embeddings `[B, 256, S/16, S/16]`.

    The ViT's own weights are frozen on construction; the adapters' are not. Like the student,
    the teacher holds no state that says what it is used for: `forward` gives the medical
    knowledge, `common` the plain ViT's.

    Args:
        vit: its modules are used, not copied.
        adapters: none gives the plain ViT.
        prepare: applied to the image first (`SamInput`); without it the image is expected as the
            ViT wants it, of its size and normalised.
        recompute: do not keep a block's inner values for the backward pass, but compute them
            again. A block with global attention otherwise holds several matrices of
            heads x 4096 x 4096 for each image.

    Raises:
        ValueError: the adapters were made for another ViT.
    """

    def __init__(
        self,
        vit: ImageEncoderViT,
        adapters: SamAdapters | None = None,
        prepare: SamInput | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if adapters is not None and adapters.widths != _widths(vit):
            raise ValueError("the adapters were made for another ViT")
        self.img_size: int = vit.img_size
        self.patch_embed = vit.patch_embed
        self.register_parameter("pos_embed", vit.pos_embed)
        self.blocks = vit.blocks
        self.neck = vit.neck
        self.requires_grad_(False)
        self.adapters = adapters
        self.prepare = prepare
        self.recompute = recompute

    def trainable(self) -> list[nn.Parameter]:
        """The adapters' parameters, their own neck's with them; the ViT's are not among them."""
        return list(self.adapters.parameters()) if self.adapters is not None else []

    def forward(self, image: Tensor) -> Tensor:
        """Embed images `[B, 3, S, S]` with the adapters, if there are any.

        Args:
            image: in [0, 1] and of any size with a `SamInput`; else as the ViT wants it.

        Raises:
            ValueError: an image of another size than the ViT's.
        """
        return self._embed(image, self.adapters)

    def common(self, image: Tensor) -> Tensor:
        """Embed images with the plain ViT, bit by bit what `ImageEncoderViT` gives.

        Raises:
            ValueError: an image of another size than the ViT's.
        """
        return self._embed(image, None)

    def _embed(self, image: Tensor, adapters: SamAdapters | None) -> Tensor:
        x = self.prepare(image) if self.prepare is not None else image
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"image size {tuple(x.shape[-2:])} is not the ViT's, {self.img_size}: use SamInput"
            )
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for index, block in enumerate(self.blocks):
            x = self._run(block, adapters.blocks[index] if adapters is not None else None, x)
        neck = adapters.neck if adapters is not None and adapters.neck is not None else self.neck
        return neck(x.permute(0, 3, 1, 2))

    def _run(self, block: nn.Module, adapter: nn.Module | None, x: Tensor) -> Tensor:
        if adapter is None:
            return block(x)
        assert isinstance(adapter, BlockAdapter)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(_adapted_block, block, adapter, x, use_reentrant=False)
        return _adapted_block(block, adapter, x)


def _adapted_block(block: Block, adapter: BlockAdapter, x: Tensor) -> Tensor:
    """A ViT block with its adapter, `[B, H, W, dim]` to the same shape."""
    normed = block.norm1(x)
    if block.window_size > 0:
        windows, padded = window_partition(normed, block.window_size)
        windows = _adapted_attention(block.attn, adapter, windows)
        attended = window_unpartition(windows, block.window_size, padded, x.shape[1:3])
    else:
        attended = _adapted_attention(block.attn, adapter, normed)
    x = x + attended
    normed = block.norm2(x)
    return x + block.mlp(normed) + adapter.expert(normed)


def _adapted_attention(attention: Attention, adapter: BlockAdapter, grid: Tensor) -> Tensor:
    """SAM's attention over a grid `[B, H, W, dim]`, with the adapter's tokens among the keys.

    The tokens have no place in the image, so they take no part in the relative positions.
    """
    batch, height, width, dim = grid.shape
    heads, places = attention.num_heads, height * width
    qkv = attention.qkv(grid).view(batch, places, 3, heads, dim // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scaled = q * attention.scale
    logits = scaled @ k.transpose(-2, -1)
    if attention.use_rel_pos:
        logits = add_decomposed_rel_pos(
            logits.flatten(0, 1),
            q.flatten(0, 1),
            attention.rel_pos_h,
            attention.rel_pos_w,
            (height, width),
            (height, width),
        ).unflatten(0, (batch, heads))
    column = scaled @ adapter.key_token.transpose(-2, -1) + adapter.token_bias
    values = torch.cat([v, adapter.value_token.to(v.dtype).expand(batch, -1, -1, -1)], dim=2)
    weights = torch.cat([logits, column.to(logits.dtype)], dim=-1).softmax(dim=-1)
    out = weights @ values
    return attention.proj(out.transpose(1, 2).reshape(batch, height, width, dim))


def _widths(vit: ImageEncoderViT) -> list[tuple[int, int]]:
    """`(dim, heads)` of each block."""
    return [(block.attn.proj.out_features, block.attn.num_heads) for block in vit.blocks]


def _copied_neck(vit: ImageEncoderViT) -> nn.Sequential:
    dim, channels = vit.neck[0].in_channels, vit.neck[0].out_channels
    copy = nn.Sequential(
        nn.Conv2d(dim, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
    copy.load_state_dict(vit.neck.state_dict())
    return copy
