"""An `EspMedSam` for inference: the same segmentations with the fused encoder."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

import torch
from torch import Tensor

from esp_medsam_app.networks import EspMedSam, Segmentation
from esp_medsam_app.networks.esp_medsam import resized
from esp_medsam_app.networks.fused_tiny_vit import FusedTinyViT
from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.networks.tiny_vit import TinyViT

# Controllers that stay fused, those used last: 13 MB each in bfloat16, the block MLPs among them;
# the others cost 4 MB each, with their queries. Fusing one takes about a
# tenth of a pass on a CPU.
FUSED_CONTROLLERS = 4


class Encoder(Protocol):
    """What `FusedTinyViT` does, in whichever way."""

    def fuse(self, controller: ModalityController | None) -> Any:
        """What the encoder takes from a controller, or from none."""
        ...

    def __call__(self, image: Tensor, controller: Any) -> Tensor:
        """Embed images `[B, 3, S, S]` to `[B, 256, E, E]`."""
        ...


class FastNetwork:
    """Runs passes as `EspMedSam.forward` does, to rounding. Not for several threads at once.

    Args:
        network: in evaluation mode, on its device. What it holds of modalities does not change.
        dtype: of the encoder; the decoder follows autocast.
        encoder: made from the network's own; a `FusedTinyViT` if not given.

    Raises:
        TypeError: the network's encoder is no `TinyViT`.
    """

    def __init__(
        self, network: EspMedSam, dtype: torch.dtype, encoder: Encoder | None = None
    ) -> None:
        if not isinstance(network.encoder, TinyViT):
            raise TypeError(f"{type(network.encoder).__name__} cannot be fused")
        self.network = network
        self.dtype = dtype
        self._encoder: Encoder = encoder or FusedTinyViT(network.encoder, dtype)
        self._fused: OrderedDict[ModalityController | None, Any] = OrderedDict()
        self._positions: dict[torch.Size, Tensor] = {}

    def on(self, network: EspMedSam) -> FastNetwork:
        """The same for a network on the same encoder with other modalities."""
        other = FastNetwork(network, self.dtype, self._encoder)
        other._positions = self._positions
        return other

    def __call__(self, image: Tensor, modality: str) -> Segmentation:
        """Segment a batch `[B, 3, S, S]` on the network's device, as `EspMedSam.forward`.

        Raises:
            KeyError: no such modality.
        """
        embedding = self.embed(image, modality)
        masks, patch_logits = self.decode(embedding, modality)
        return Segmentation(resized(masks, image), patch_logits, embedding)

    def embed(self, image: Tensor, modality: str) -> Tensor:
        """Image embedding, as `EspMedSam.embed`."""
        return self._encoder(image, self._controller(self.network.controller(modality)))

    def decode(self, embedding: Tensor, modality: str) -> tuple[Tensor, Tensor | None]:
        """Mask logits and patch logits, as `EspMedSam.decode`."""
        return self.network.decode(embedding, modality, position=self._position(embedding))

    def _controller(self, controller: ModalityController | None) -> Any:
        fused = self._fused.pop(controller, None) or self._encoder.fuse(controller)
        self._fused[controller] = fused
        if len(self._fused) > FUSED_CONTROLLERS:
            self._fused.popitem(last=False)
        return fused

    def _position(self, embedding: Tensor) -> Tensor:
        size = embedding.shape[-2:]
        if size not in self._positions:
            self._positions[size] = self.network.position(embedding)
        return self._positions[size]
