"""Encoders that show what is inside them, as DeSAM's mask decoder wants."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Features(NamedTuple):
    """What an encoder gives for images.

    Attributes:
        inner: three maps from inside, shallow to deep; each `[B, C, k E, k E]` with k of 1, 2, 4.
        embedding: `[B, 256, E, E]`.
    """

    inner: tuple[Tensor, Tensor, Tensor]
    embedding: Tensor


class InnerMap(NamedTuple):
    """Shape of one of an encoder's inner maps: channels, and its side over the embedding's."""

    channels: int
    times: int = 1


class FeatureEncoder(Protocol):
    """An encoder that shows what is inside it."""

    @property
    def inner_maps(self) -> tuple[InnerMap, InnerMap, InnerMap]:
        """Of `Features.inner`."""
        ...

    def features(self, image: Tensor) -> Features:
        """Of images `[B, 3, S, S]`, scaled as the encoder expects."""
        ...
