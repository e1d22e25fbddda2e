"""QDMD: the query-decoupled modality decoder."""

from __future__ import annotations

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn


class ModalityQueries(nn.Module):
    """What one modality owns of the decoder: its queries and their hyper-network MLP.

    The papers have one query a modality; here a modality has one a label. The authors' checkpoints
    hold seven queries with one MLP, of which six are decoded.

    Args:
        queries: number of query tokens, all of which take part in the transformer.
        decoded: how many of them, from the first, give a mask (default: all).
    """

    def __init__(self, queries: int, decoded: int | None = None, channels: int = 256) -> None:
        super().__init__()
        self.decoded = queries if decoded is None else decoded
        self.tokens = nn.Embedding(queries, channels)
        self.mlp = MLP(channels, channels, channels // 8, 3)


class ModalityDecoder(nn.Module):
    """The decoder's shared part: SAM's two-way transformer and upscaling.

    `[B, 256, E, E]` to mask logits `[B, labels, 4 E, 4 E]`.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(
            depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8
        )
        self.upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )

    def forward(
        self,
        embedding: Tensor,
        position: Tensor,
        queries: ModalityQueries,
        query: int | None = None,
    ) -> Tensor:
        """Decode a whole batch at once.

        Args:
            embedding: image embedding plus dense prompt, `[B, 256, E, E]`.
            position: dense positional encoding, `[1, 256, E, E]`.
            queries: the modality's.
            query: decode this one alone (`[B, 1, ...]`); all of them by default.

        Raises:
            IndexError: there is no such query.
        """
        if query is not None and not 0 <= query < queries.decoded:
            raise IndexError(f"query {query} is outside 0..{queries.decoded - 1}")
        batch, channels, height, width = embedding.shape
        tokens = queries.tokens.weight.to(embedding.dtype).expand(batch, -1, -1)
        tokens, image = self.transformer(embedding, position.to(embedding.dtype), tokens)
        image = self.upscaling(image.transpose(1, 2).reshape(batch, channels, height, width))
        wanted = slice(0, queries.decoded) if query is None else slice(query, query + 1)
        weights = queries.mlp(tokens[:, wanted])
        return torch.einsum("bqc,bchw->bqhw", weights, image)
