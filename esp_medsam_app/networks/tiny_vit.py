"""TinyViT image encoder with a SAM neck, shared by all modalities.

The architecture is TinyViT-5M (arXiv 2207.10666) as MobileSAM (arXiv 2306.14289) turned it into
an image encoder: a stem, one stage of inverted bottlenecks, three stages of windowed attention,
and SAM's neck to 256 channels. Parameter names are those of the published checkpoints
(MobileSAM, LiteMedSAM, ESP-MedSAM), so that these load without a table of names.

The modality's share is not stored here: `forward` takes a `ModalityController` as an argument.
The encoder holds no state that says which modality is active, so threads can share it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from esp_medsam_app.networks.features import Features, InnerMap
from esp_medsam_app.networks.modality_controller import (
    BlockController,
    ModalityController,
    NormMlp,
)

DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)
# The last merging keeps the grid, as in MobileSAM: the embedding has 1/16 of a 1024 image.
MERGING_STRIDES = (2, 2, 1)
EMBEDDING_CHANNELS = 256


class ConvNorm(nn.Sequential):
    """Convolution without bias (`c`) and batch norm (`bn`)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)


class PatchEmbed(nn.Module):
    """Stem. Stride 4 (two 3x3 convolutions of stride 2) or 1 (two 1x1 convolutions: LiteMedSAM)."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        if stride not in (1, 4):
            raise ValueError(f"stem stride is 1 or 4, not {stride}")
        kernel, step = (1, 1) if stride == 1 else (3, 2)
        self.seq = nn.Sequential(
            ConvNorm(3, dim // 2, kernel, step), nn.GELU(), ConvNorm(dim // 2, dim, kernel, step)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.seq(image)


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 to 4 x dim, depthwise 3x3, 1x1 back, residual, GELU."""

    def __init__(self, dim: int, expand: int = 4) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, expand * dim)
        self.conv2 = ConvNorm(expand * dim, expand * dim, kernel=3, groups=expand * dim)
        self.conv3 = ConvNorm(expand * dim, dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        return self.act(x + inner)


class PatchMerging(nn.Module):
    """Between two stages: 1x1, depthwise 3x3 with the stride, 1x1."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, kernel=3, stride=stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for each distance (|dy|, |dx|)."""

    attention_bias_idxs: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()])
        distance = (place[:, :, None] - place[:, None, :]).abs()
        self.register_buffer(
            "attention_bias_idxs", distance[0] * window + distance[1], persistent=False
        )

    def forward(self, x: Tensor, controller: BlockController | None) -> Tensor:
        """`[windows, tokens, dim]` to the same shape."""
        windows, tokens, dim = x.shape
        # The checkpoints interleave q, k, v inside each head.
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, 3, dim // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        bias = self.attention_biases[:, self.attention_bias_idxs]
        if controller is not None:
            token = controller.token.to(k.dtype).expand(windows, -1, -1, -1)
            k = torch.cat([k, token], dim=2)
            v = torch.cat([v, token], dim=2)
            column = controller.token_bias.expand(self.heads, tokens, 1)
            bias = torch.cat([bias, column], dim=2)
        logits = (q @ k.transpose(-2, -1)) * self.scale + bias.to(q.dtype)
        out = logits.softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(windows, tokens, dim))


class AttentionBlock(nn.Module):
    """Windowed attention, depthwise 3x3 convolution, MLP (and the controller's expert MLP)."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = ConvNorm(dim, dim, kernel=3, groups=dim)
        self.mlp = NormMlp(dim)

    def forward(self, x: Tensor, controller: BlockController | None) -> Tensor:
        """`[B, dim, H, W]` to the same shape."""
        grid = x.permute(0, 2, 3, 1)
        # Contiguous, as a convolution's order of summation depends on the memory layout.
        x = (grid + self._attend(grid, controller)).permute(0, 3, 1, 2).contiguous()
        grid = self.local_conv(x).permute(0, 2, 3, 1)
        out = grid + self.mlp(grid)
        if controller is not None:
            out = out + controller.expert(grid)
        return out.permute(0, 3, 1, 2).contiguous()

    def _attend(self, grid: Tensor, controller: BlockController | None) -> Tensor:
        batch, height, width, dim = grid.shape
        size = self.window
        if (height, width) == (size, size):
            tokens = self.attn(grid.reshape(batch, -1, dim), controller)
            return tokens.view(batch, height, width, dim)
        # Zero tokens fill the last windows and take part in the attention, unmasked: the
        # published weights were trained that way.
        rows, columns = -(-height // size), -(-width // size)
        padded = F.pad(grid, (0, 0, 0, columns * size - width, 0, rows * size - height))
        windows = padded.view(batch, rows, size, columns, size, dim).transpose(2, 3)
        tokens = self.attn(windows.reshape(-1, size * size, dim), controller)
        windows = tokens.view(batch, rows, columns, size, size, dim).transpose(2, 3)
        return windows.reshape(batch, rows * size, columns * size, dim)[:, :height, :width]


class Stage(nn.Module):
    """Blocks of one width, then the merging into the next stage's (none after the last)."""

    def __init__(self, blocks: list[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class TinyViT(nn.Module):
    """The shared encoder: `[B, 3, S, S]` to an image embedding `[B, 256, E, E]`.

    `E` is a sixteenth of the image behind the stride-4 stem (1024 to 64), a quarter behind the
    1x1 stem (256 to 64). Any size works that leaves a whole grid, i.e. a multiple of 4 x stride.

    Args:
        stem_stride: 4 for MobileSAM's and the authors' stem, 1 for LiteMedSAM's.
    """

    def __init__(self, stem_stride: int = 1) -> None:
        super().__init__()
        self.stem_stride = stem_stride
        self.patch_embed = PatchEmbed(DIMS[0], stem_stride)
        stages = []
        for index, (dim, depth) in enumerate(zip(DIMS, DEPTHS, strict=True)):
            blocks: list[nn.Module] = [
                MBConv(dim) if index == 0 else AttentionBlock(dim, HEADS[index], WINDOWS[index])
                for _ in range(depth)
            ]
            last = index == len(DIMS) - 1
            merging = None if last else PatchMerging(dim, DIMS[index + 1], MERGING_STRIDES[index])
            stages.append(Stage(blocks, merging))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(DIMS[-1], EMBEDDING_CHANNELS, 1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )

    @property
    def attention_widths(self) -> list[tuple[int, int]]:
        """`(dim, heads)` of each attention block: what a `ModalityController` is made for."""
        return [
            (dim, heads)
            for dim, heads, depth in zip(DIMS[1:], HEADS[1:], DEPTHS[1:], strict=True)
            for _ in range(depth)
        ]

    def forward(self, image: Tensor, controller: ModalityController | None = None) -> Tensor:
        """Embed images `[B, 3, S, S]` (normalised as the backbone expects) to `[B, 256, E, E]`.

        Raises:
            ValueError: the size leaves no whole grid.
        """
        return self.encode_from(self.encode_until(image, 1), 1, controller)

    def encode_until(
        self, image: Tensor, stage: int, controller: ModalityController | None = None
    ) -> Tensor:
        """The features that enter `stage` (1 to 3): a cache point for training with frozen stages.

        Stage 0 has no attention, so what enters stage 1 is the same for every modality.
        """
        multiple = 4 * self.stem_stride
        if image.shape[-1] % multiple or image.shape[-2] % multiple:
            raise ValueError(
                f"image size {tuple(image.shape[-2:])} is not a multiple of {multiple}"
            )
        return self._run(self.patch_embed(image), 0, stage, controller)

    def encode_from(
        self, features: Tensor, stage: int, controller: ModalityController | None = None
    ) -> Tensor:
        """The rest of the forward pass from the features that enter `stage`."""
        return self.neck(self._run(features, stage, len(self.layers), controller))

    @property
    def inner_maps(self) -> tuple[InnerMap, InnerMap, InnerMap]:
        """Shapes of the maps that `features` shows: stages 1 to 3, before their merging."""
        return (InnerMap(DIMS[1], 2), InnerMap(DIMS[2]), InnerMap(DIMS[3]))

    def features(self, image: Tensor) -> Features:
        """The embedding without a controller, and what stages 1 to 3 give on their own grids.

        Raises:
            ValueError: the size leaves no whole grid.
        """
        inner: list[Tensor] = []
        x = self.encode_until(image, 1)
        embedding = self.neck(self._run(x, 1, len(self.layers), None, inner))
        shallow, middle, deep = inner
        return Features((shallow, middle, deep), embedding)

    def _run(
        self,
        x: Tensor,
        first: int,
        end: int,
        controller: ModalityController | None,
        shown: list[Tensor] | None = None,
    ) -> Tensor:
        """Stages `first` to `end` - 1; what each gives before its merging goes to `shown`."""
        block_index = sum(DEPTHS[1:first]) if first else 0
        for stage in self.layers[first:end]:
            assert isinstance(stage, Stage)
            for block in stage.blocks:
                if isinstance(block, AttentionBlock):
                    x = block(x, controller[block_index] if controller is not None else None)
                    block_index += 1
                else:
                    x = block(x)
            if shown is not None:
                shown.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return x
