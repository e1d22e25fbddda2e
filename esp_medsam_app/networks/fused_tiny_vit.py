"""The encoder's function in fewer and larger operations, for inference.

What a `TinyViT` computes with a `ModalityController`, to rounding: batch norm folded into its
convolution, the affine part of layer norm into the linear layer behind it, block MLP and expert
MLP in one, 1x1 convolutions as products over channels-last tokens, and attention by
`scaled_dot_product_attention` with the biases of all distances and the controller's column laid
out once.

In 16 bits the stem computes in float32, as do the sums of the first stage: that costs little, and
all else stands on them. Weights whose inputs batch norm tells of are rounded by `rounding`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.networks.features import Features
from esp_medsam_app.networks.modality_controller import BlockController, ModalityController
from esp_medsam_app.networks.rounding import Moments, rounded
from esp_medsam_app.networks.tiny_vit import (
    AttentionBlock,
    ConvNorm,
    MBConv,
    PatchMerging,
    Stage,
    TinyViT,
    WindowAttention,
)

# What goes through a widening block at a time on a CPU, so that what it widens to stays in the
# cache: rows of a grid (even, for strides), tokens.
STRIP, CHUNK = 16, 512
# nn.LayerNorm's, and LayerNorm2d's of the neck
EPS, NECK_EPS = 1e-5, 1e-6


class Linear(NamedTuple):
    """Weight `[out, in]` and bias `[out]`, on the last axis."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Convolution(NamedTuple):
    """Weight `[out, in / groups, k, k]` and bias `[out]`, on `[B, H, W, C]`."""

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    groups: int

    def __call__(self, grid: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        x = grid.permute(0, 3, 1, 2)
        x = F.conv2d(
            x, self.weight, self.bias, self.stride, padding or self.padding, 1, self.groups
        )
        return x.permute(0, 2, 3, 1)


class FusedMlp(NamedTuple):
    """From what layer norm gives before its affine part; that is in the first layer."""

    first: Linear
    second: Linear

    def __call__(self, normal: Tensor) -> Tensor:
        if normal.device.type != "cpu":
            return self.second(_gelu(self.first(normal)))
        tokens = normal.flatten(0, -2)
        out = torch.empty_like(tokens)
        for start in range(0, len(tokens), CHUNK):
            inner = _gelu(self.first(tokens[start : start + CHUNK]))
            torch.addmm(
                self.second.bias, inner, self.second.weight.t(), out=out[start : start + CHUNK]
            )
        return out.view(normal.shape)


class FusedBlock(NamedTuple):
    """What one attention block takes from a controller.

    Attributes:
        bias: `[1, heads, tokens, keys]`, added to the attention logits.
        token: `[heads, 1, head dim]`, the further key and value; none without a controller.
        mlp: the block's MLP, with the expert's beside it.
    """

    bias: Tensor
    token: Tensor | None
    mlp: FusedMlp


FusedController = tuple[FusedBlock, ...]


class FusedTinyViT:
    """A `TinyViT` to infer with. It holds copies of its weights and no state of any modality.

    Args:
        encoder: whose function it is to have, in evaluation mode.
        dtype: of weights and activations.
    """

    def __init__(self, encoder: TinyViT, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._encoder = encoder
        with torch.no_grad():
            first, _, second = encoder.patch_embed.seq
            assert isinstance(first, ConvNorm)
            assert isinstance(second, ConvNorm)
            self._stem = [self._layer(part, dtype=torch.float32) for part in (first, second)]
            self._stages: list[tuple[list[_Convolutions | _Attention], _Convolutions | None]] = []
            given: Moments | None = Moments.behind(second.bn)
            for stage in encoder.layers:
                assert isinstance(stage, Stage)
                blocks = []
                for block in stage.blocks:
                    made, given = self._block(block, given)
                    blocks.append(made)
                down = stage.downsample
                assert down is None or isinstance(down, PatchMerging)
                merging = None
                if down is not None:
                    merging, given = self._convolutions(down, given)
                self._stages.append((blocks, merging))
            reduce, first_norm, mix, second_norm = encoder.neck
            self._neck = (
                self._plain(reduce),
                self._pair(first_norm),
                self._plain(mix),
                self._pair(second_norm),
            )

    def fuse(self, controller: ModalityController | None) -> FusedController:
        """What the blocks take from a controller, or from none."""
        blocks = [
            block
            for stage in self._encoder.layers
            for block in stage.blocks  # type: ignore[union-attr]
            if isinstance(block, AttentionBlock)
        ]
        with torch.no_grad():
            return tuple(
                self._fused(block, None if controller is None else controller[index])
                for index, block in enumerate(blocks)
            )

    def __call__(self, image: Tensor, controller: FusedController) -> Tensor:
        """Embed images `[B, 3, S, S]` to `[B, 256, E, E]`, channels last in memory."""
        # each layer has its type already
        with torch.autocast(image.device.type, enabled=False):
            return self._embed(image, controller)

    def features(self, image: Tensor, controller: FusedController) -> Features:
        """The embedding, and what stages 1 to 3 give on their own grids: `TinyViT.features`."""
        shown: list[Tensor] = []
        with torch.autocast(image.device.type, enabled=False):
            embedding = self._embed(image, controller, shown)
        _, shallow, middle, deep = (x.permute(0, 3, 1, 2) for x in shown)
        return Features((shallow, middle, deep), embedding)

    def _embed(
        self, image: Tensor, controller: FusedController, shown: list[Tensor] | None = None
    ) -> Tensor:
        x = image.float().permute(0, 2, 3, 1)
        x = self._stem[1](_gelu(self._stem[0](x)))
        fused = iter(controller)
        for blocks, merging in self._stages:
            for block in blocks:
                x = block(x, next(fused)) if isinstance(block, _Attention) else block(x)
            if shown is not None:
                shown.append(x)
            if merging is not None:
                x = merging(x)
        reduce, first_norm, mix, second_norm = self._neck
        x = F.layer_norm(reduce(x), first_norm[0].shape, *first_norm, eps=NECK_EPS)
        x = F.layer_norm(mix(x), second_norm[0].shape, *second_norm, eps=NECK_EPS)
        return x.permute(0, 3, 1, 2)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.dtype).contiguous()

    def _pair(self, norm: torch.nn.Module) -> tuple[Tensor, Tensor]:
        return self._cast(norm.weight), self._cast(norm.bias)  # type: ignore[arg-type]

    def _layer(
        self,
        layer: ConvNorm,
        given: Moments | None = None,
        dtype: torch.dtype | None = None,
    ) -> Linear | Convolution:
        """Convolution and batch norm as one, for what it is given; a product for kernels of 1x1."""
        mean, variance = layer.bn.running_mean, layer.bn.running_var
        assert mean is not None
        assert variance is not None
        weight = layer.c.weight.double()
        scale = layer.bn.weight.double() / (variance.double() + layer.bn.eps).sqrt()
        bias = layer.bn.bias.double() - mean.double() * scale
        weight = weight * scale[:, None, None, None]
        inputs = None if given is None else given.mean[:, None, None]
        if inputs is not None and layer.c.groups > 1:
            inputs = inputs[:, None]
        return self._convolution(layer.c, *rounded(weight, bias, inputs, dtype or self.dtype))

    def _plain(self, layer: torch.nn.Module) -> Linear | Convolution:
        assert isinstance(layer, torch.nn.Conv2d)
        bias = layer.weight.new_zeros(len(layer.weight))
        return self._convolution(layer, self._cast(layer.weight), self._cast(bias))

    def _convolution(
        self, layer: torch.nn.Conv2d, weight: Tensor, bias: Tensor
    ) -> Linear | Convolution:
        if layer.kernel_size == (1, 1) and layer.stride == (1, 1):
            return Linear(weight[:, :, 0, 0].contiguous(), bias)
        return Convolution(
            weight.contiguous(memory_format=torch.channels_last),
            bias,
            layer.stride[0],
            layer.kernel_size[0] // 2,
            layer.groups,
        )

    def _convolutions(
        self, block: MBConv | PatchMerging, given: Moments | None
    ) -> tuple[_Convolutions, Moments | None]:
        """The fused block, for what it is given, and what it gives."""
        parts = (block.conv1, block.conv2, block.conv3)
        first, second, out = (Moments.behind(part.bn) for part in parts)
        expand = self._layer(block.conv1, given)
        mix = self._layer(block.conv2, first.gelu())
        reduce = self._layer(block.conv3, second.gelu())
        assert isinstance(expand, Linear)
        assert isinstance(mix, Convolution)
        assert isinstance(reduce, Linear)
        residual = isinstance(block, MBConv)
        gives: Moments | None = out
        if residual:
            gives = None if given is None else given.plus(out).gelu()
        return _Convolutions(expand, mix, reduce, residual), gives

    def _block(
        self, block: torch.nn.Module, given: Moments | None
    ) -> tuple[_Convolutions | _Attention, Moments | None]:
        if isinstance(block, MBConv):
            return self._convolutions(block, given)
        assert isinstance(block, AttentionBlock)
        attention = block.attn
        dim = attention.proj.in_features
        # checkpoints interleave q, k, v inside each head; here the three lie apart
        order = torch.arange(3 * dim).view(attention.heads, 3, -1).transpose(0, 1).flatten()
        qkv = _normed(attention.qkv, attention.norm)
        local = self._layer(block.local_conv)
        assert isinstance(local, Convolution)
        fused = _Attention(
            attention.heads,
            block.window,
            self._linear(qkv[0][order], qkv[1][order]),
            self._linear(attention.proj.weight, attention.proj.bias),
            local,
        )
        # no batch norm tells of what attention and MLPs add
        return fused, None

    def _linear(self, weight: Tensor, bias: Tensor) -> Linear:
        return Linear(self._cast(weight), self._cast(bias))

    def _fused(self, block: AttentionBlock, controller: BlockController | None) -> FusedBlock:
        mlps = [block.mlp]
        if controller is not None:
            mlps.append(controller.expert)
        firsts = [_normed(mlp.fc1, mlp.norm) for mlp in mlps]
        mlp = FusedMlp(
            self._linear(torch.cat([w for w, _ in firsts]), torch.cat([b for _, b in firsts])),
            self._linear(
                torch.cat([mlp.fc2.weight for mlp in mlps], dim=1),
                sum((mlp.fc2.bias for mlp in mlps), start=torch.zeros(())),
            ),
        )
        return FusedBlock(
            self._cast(_biases(block.attn, controller)),
            None if controller is None else self._cast(controller.token),
            mlp,
        )


class _Convolutions(NamedTuple):
    """1x1, depthwise 3x3 and 1x1: an inverted bottleneck, or the merging of two stages."""

    expand: Linear
    mix: Convolution
    reduce: Linear
    residual: bool

    def __call__(self, grid: Tensor) -> Tensor:
        if grid.device.type != "cpu" or grid.shape[1] <= 2 * STRIP:
            return self._over(grid, grid, (1, 1))
        return torch.cat([self._strip(grid, top) for top in range(0, grid.shape[1], STRIP)], dim=1)

    def _strip(self, grid: Tensor, top: int) -> Tensor:
        """The rows that `STRIP` rows from `top` become, with what they need above and below."""
        bottom = min(top + STRIP, grid.shape[1])
        return self._over(
            grid[:, max(0, top - 1) : bottom + 1],
            grid[:, top:bottom],
            (int(top == 0), int(bottom == grid.shape[1])),
        )

    def _over(self, grid: Tensor, own: Tensor, edges: tuple[int, int]) -> Tensor:
        inner = _gelu(self.expand(grid.to(self.expand.weight.dtype)))
        # zeros around the expanded grid, at the image's edges only
        if edges != (1, 1):
            inner = F.pad(inner, (0, 0, 0, 0, *edges))
            inner = self.mix(inner, (0, 1))
        else:
            inner = self.mix(inner)
        out = self.reduce(_gelu(inner))
        # the sum has the type of what it is added to: float32 in the first stage
        return _gelu(out.to(own.dtype).add_(own)) if self.residual else out


class _Attention(NamedTuple):
    """Windowed attention, depthwise 3x3 and the MLPs."""

    heads: int
    window: int
    qkv: Linear
    proj: Linear
    local: Convolution

    def __call__(self, grid: Tensor, fused: FusedBlock) -> Tensor:
        """`[B, H, W, dim]` to the same shape."""
        grid = self.local(grid + self._attend(grid, fused))
        return fused.mlp(F.layer_norm(grid, grid.shape[-1:], eps=EPS)).add_(grid)

    def _attend(self, grid: Tensor, fused: FusedBlock) -> Tensor:
        batch, height, width, dim = grid.shape
        size = self.window
        rows, columns = -(-height // size), -(-width // size)
        # Normalised first: a zero token's norm without the affine part is zero again.
        x = F.layer_norm(grid, (dim,), eps=EPS)
        x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
        x = x.view(batch, rows, size, columns, size, dim).transpose(2, 3)
        qkv = self.qkv(x.reshape(-1, size * size, dim))
        q, k, v = qkv.view(len(qkv), -1, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if fused.token is not None:
            token = fused.token.expand(len(k), -1, -1, -1)
            k, v = torch.cat([k, token], dim=2), torch.cat([v, token], dim=2)
        x = _attention(q, k, v, fused.bias)
        x = self.proj(x.transpose(1, 2).reshape(-1, size * size, dim))
        x = x.view(batch, rows, columns, size, size, dim).transpose(2, 3)
        return x.reshape(batch, rows * size, columns * size, dim)[:, :height, :width]


def _normed(layer: torch.nn.Linear, norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """A linear layer with the affine part of the norm before it."""
    weight = layer.weight.double()
    return weight * norm.weight.double(), layer.bias.double() + weight @ norm.bias.double()


def _biases(attention: WindowAttention, controller: BlockController | None) -> Tensor:
    bias = attention.attention_biases[:, attention.attention_bias_idxs]
    if controller is not None:
        column = controller.token_bias.expand(*bias.shape[:2], 1)
        bias = torch.cat([bias, column], dim=2)
    return bias.unsqueeze(0)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # windows are so small that the products themselves are faster here
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return logits.add_(bias).softmax(dim=-1) @ v


def _gelu(x: Tensor) -> Tensor:
    """GELU in place: these are intermediates that nobody else sees."""
    return torch.ops.aten.gelu_(x)
