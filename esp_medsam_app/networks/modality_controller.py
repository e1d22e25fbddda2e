"""Modality controller: the small part of the encoder that belongs to one modality.

ESP-MedSAM (arXiv 2407.14153) shares one TinyViT between all modalities and gives each modality,
in every attention block, a learned token that the keys and values are extended by and an expert
MLP in parallel with the block's own ("semi-parameter sharing"). The authors' code uses the same
vector for key and value; so does this module, so that their checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Logit of the fresh token's column: e^-8 beside the sum over at least 49 keys, so that a fresh
# controller leaves the backbone's function as it is and yet receives a gradient.
FRESH_TOKEN_BIAS = -8.0


class NormMlp(nn.Module):
    """LayerNorm, linear, GELU, linear: `[..., dim]` to `[..., dim]`, hidden width 4 x dim."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))


class BlockController(nn.Module):
    """One attention block's share of a controller.

    Attributes:
        token: `[heads, 1, head_dim]`, appended to the block's keys and to its values.
        token_bias: `[1]`, added to the attention logits of that column.
        expert: MLP in parallel with the block's own, on the same input.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(heads, 1, dim // heads))
        self.token_bias = nn.Parameter(torch.full((1,), FRESH_TOKEN_BIAS))
        self.expert = NormMlp(dim)
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.zeros_(self.expert.fc2.weight)
        nn.init.zeros_(self.expert.fc2.bias)


class ModalityController(nn.Module):
    """All block controllers of one modality, for an encoder with the given attention blocks.

    A freshly made one changes the encoder's output by less than 1e-4 (relative): the experts'
    last layers are zero and the tokens' logits far below those of the image.

    Args:
        widths: `(dim, heads)` of each attention block, in the order of the forward pass
            (`TinyViT.attention_widths`).
    """

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BlockController(dim, heads) for dim, heads in widths)

    def __getitem__(self, index: int) -> BlockController:
        block = self.blocks[index]
        assert isinstance(block, BlockController)
        return block
