"""ESP-MedSAM: shared encoder, modality controllers, SPPG and QDMD put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from esp_medsam_app.networks.modality_controller import ModalityController
from esp_medsam_app.networks.modality_decoder import ModalityDecoder, ModalityQueries
from esp_medsam_app.networks.patch_prompt_generator import PatchPromptGenerator
from esp_medsam_app.networks.tiny_vit import EMBEDDING_CHANNELS, TinyViT


class Segmentation(NamedTuple):
    """What a forward pass gives for a batch of images `[B, 3, S, S]`.

    Attributes:
        mask_logits: `[B, queries, S, S]`; 0 is the decision threshold.
        patch_logits: `[B, 1, E/2, E/2]`, SPPG's map of patches that hold the structure; none
            where the design leaves SPPG out.
        image_embedding: `[B, 256, E, E]`, before the dense prompt is added.
    """

    mask_logits: Tensor
    patch_logits: Tensor | None
    image_embedding: Tensor


@dataclass(frozen=True)
class Design:
    """Which of the papers' parts the network has; all by default. For ablations and teachers.

    Attributes:
        controllers: each modality has a controller in the encoder.
        patch_prompt: SPPG makes the dense prompt; else it is SAM's embedding of "no mask".
        own_queries: each modality has queries and a hyper-network MLP of its own; else all share
            one set, as large as the largest needs.
    """

    controllers: bool = True
    patch_prompt: bool = True
    own_queries: bool = True


WHOLE = Design()


class EspMedSam(nn.Module):
    """One backbone, any number of modalities beside it.

    A modality is a controller (of the encoder) and its queries (of the decoder); it is added and
    removed at run time and costs 3.3 M parameters. No state says which one is active: a forward
    pass names its modality.

    Args:
        encoder: the shared backbone. Without controllers any module will do that embeds
            `[B, 3, S, S]` as `[B, 256, E, E]`.
        design: parts that are left out.
    """

    def __init__(self, encoder: nn.Module, design: Design = WHOLE) -> None:
        super().__init__()
        self.encoder = encoder
        self.design = design
        self.prompt_encoder = PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(64, 64),
            input_image_size=(1024, 1024),
            mask_in_chans=16,
        )
        self.patch_prompt_generator = PatchPromptGenerator(EMBEDDING_CHANNELS)
        self.decoder = ModalityDecoder(EMBEDDING_CHANNELS)
        self.controllers = nn.ModuleDict()
        self.queries = nn.ModuleDict()

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities in memory, in the order they were added."""
        return list(self.queries)

    def add_modality(
        self,
        name: str,
        queries: ModalityQueries | int,
        controller: ModalityController | None = None,
    ) -> None:
        """Put a modality beside the others; one of the same name is replaced.

        Args:
            name: without dots.
            queries: its queries, or their number for fresh ones.
            controller: its controller; a fresh, neutral one by default.
        """
        if isinstance(queries, int):
            queries = ModalityQueries(queries, channels=EMBEDDING_CHANNELS)
        place = next(self.encoder.parameters()).device
        if self.design.controllers:
            if controller is None:
                assert isinstance(self.encoder, TinyViT)
                controller = ModalityController(self.encoder.attention_widths)
            self.controllers[name] = controller.to(place).train(self.training)
        if not self.design.own_queries:
            self._share(queries)
        self.queries[name] = queries.to(place).train(self.training)

    def _share(self, queries: ModalityQueries) -> None:
        """Give these and the queries in memory one set of tokens and one MLP: the larger set."""
        for known in self.queries.values():
            assert isinstance(known, ModalityQueries)
            if len(known.tokens.weight) >= len(queries.tokens.weight):
                queries.tokens, queries.mlp = known.tokens, known.mlp
            else:
                known.tokens, known.mlp = queries.tokens, queries.mlp

    def remove_modality(self, name: str) -> None:
        """Take a modality out of memory.

        Raises:
            KeyError: there is no such modality.
        """
        del self.queries[name]
        if self.design.controllers:
            del self.controllers[name]

    def sharing(self) -> EspMedSam:
        """Another network on the same modules, those of the modalities included.

        Modalities that are added to it, replaced or removed leave this one as it is.
        """
        other = EspMedSam.__new__(EspMedSam)
        nn.Module.__init__(other)
        other.training = self.training
        other.design = self.design
        for name, module in self.named_children():
            other.add_module(name, module)
        other.controllers = nn.ModuleDict(dict(self.controllers.items())).train(self.training)
        other.queries = nn.ModuleDict(dict(self.queries.items())).train(self.training)
        return other

    def controller(self, modality: str) -> ModalityController | None:
        """The modality's controller; none where the design has none."""
        if not self.design.controllers:
            return None
        controller = self.controllers[modality]
        assert isinstance(controller, ModalityController)
        return controller

    def embed(self, image: Tensor, modality: str) -> Tensor:
        """Image embedding `[B, 256, E, E]` under the modality's controller."""
        controller = self.controller(modality)
        return self.encoder(image) if controller is None else self.encoder(image, controller)

    def decode(
        self,
        embedding: Tensor,
        modality: str,
        query: int | None = None,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Mask logits `[B, queries, 4 E, 4 E]` and patch logits `[B, 1, E/2, E/2]` if any.

        Args:
            embedding: `[B, 256, E, E]`.
            modality: its name.
            query: decode this query alone.
            position: what `position` gives for such an embedding, from an earlier call.
        """
        queries = self.queries[modality]
        assert isinstance(queries, ModalityQueries)
        patch_logits: Tensor | None = None
        if self.design.patch_prompt:
            prompt, patch_logits = self.patch_prompt_generator(embedding)
        else:
            prompt = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        if position is None:
            position = self.position(embedding)
        # SAM's no_mask_embed is not added: the dense prompt takes its place.
        return self.decoder(embedding + prompt, position, queries, query), patch_logits

    def position(self, embedding: Tensor) -> Tensor:
        """SAM's dense positional encoding `[1, 256, E, E]`, in float32 whatever the precision.

        Its frequencies reach many turns across the image: bfloat16 would leave their phase open.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            position = self.prompt_encoder.pe_layer(tuple(embedding.shape[-2:]))
        return position.unsqueeze(0)

    def forward(
        self, image: Tensor, modality: str | None = None, query: int | None = None
    ) -> Segmentation:
        """Segment a batch of images.

        Args:
            image: `[B, 3, S, S]`, normalised as the backbone expects.
            modality: its name; may be left out where only one is in memory.
            query: decode this query alone.

        Raises:
            KeyError: no such modality, or several and none named.
            IndexError: no such query.
        """
        if modality is None:
            if len(self.queries) != 1:
                raise KeyError(f"name one of the modalities {self.modalities}")
            modality = self.modalities[0]
        embedding = self.embed(image, modality)
        masks, patch_logits = self.decode(embedding, modality, query)
        return Segmentation(resized(masks, image), patch_logits, embedding)


def resized(masks: Tensor, image: Tensor) -> Tensor:
    """Mask logits on the image's pixels."""
    if masks.shape[-2:] == image.shape[-2:]:
        return masks
    return F.interpolate(masks, size=image.shape[-2:], mode="bilinear", align_corners=False)
