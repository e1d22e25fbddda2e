"""DeSAM (arXiv 2306.00499): SAM's decoder, with the mask taken away from the prompt's influence.

A frozen encoder gives an image embedding and three maps from inside it. PRIM, SAM's two-way
transformer and IoU head, lets prompt and embedding meet; what it makes of the image is the mask
embedding. PDMM, a small U-Net over the three maps, draws the mask from them and the mask embedding
alone: a prompt in a bad place costs the mask little.

Where the paper and its code differ, this is the code, whose checkpoints load; figure and text give
PDMM's bottleneck 128 channels, the code 256. One thing is ours: a modality with several labels has
a mask and an IoU for each. With one label both are the authors'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from esp_medsam_app.networks.features import Features, InnerMap
from esp_medsam_app.networks.se_residual import Convolution, SeResidual
from esp_medsam_app.networks.tiny_vit import EMBEDDING_CHANNELS

# Side of the frame that prompts are given in, whatever the image's size: SAM's input.
PROMPT_FRAME = 1024
# Channels of PDMM on the embedding's grid, on twice and on four times that grid.
WIDTHS = (256, 128, 64)
# SAM's tokens beside the prompt's: one for the IoU, four for masks.
MASK_TOKENS = 4


class Prompted(NamedTuple):
    """What PRIM gives for N prompts.

    Attributes:
        mask_embedding: `[N, 256, E, E]`.
        iou: predicted for the mask of each label, `[N, labels]`.
    """

    mask_embedding: Tensor
    iou: Tensor


class DeSamOutput(NamedTuple):
    """What a decoder gives for N prompts.

    Attributes:
        mask_logits: `[N, labels, 4 E, 4 E]`; 0 is the decision threshold.
        iou: predicted, `[N, labels]`.
    """

    mask_logits: Tensor
    iou: Tensor


class PromptRelevantModule(nn.Module):
    """PRIM: SAM's mask decoder without its masks.

    Args:
        labels: IoUs to predict.
    """

    def __init__(self, labels: int = 1, channels: int = EMBEDDING_CHANNELS) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(
            depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8
        )
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, channels)
        self.iou_prediction_head = MLP(channels, channels, labels, 3)

    def forward(self, embedding: Tensor, position: Tensor, prompts: Tensor) -> Prompted:
        """Let prompts meet the image.

        Args:
            embedding: with SAM's dense prompt, `[N, 256, E, E]`.
            position: dense positional encoding, `[1, 256, E, E]`.
            prompts: SAM's tokens of each, `[N, T, 256]`.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).to(prompts.dtype)
        tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1)
        tokens, image = self.transformer(embedding, position, tokens)
        iou = self.iou_prediction_head(tokens[:, 0])
        return Prompted(image.transpose(1, 2).reshape(embedding.shape), iou)


class _Context(nn.Module):
    """One inner map, brought to a level of PDMM."""

    def __init__(self, inputs: int, outputs: int, doublings: int) -> None:
        super().__init__()
        self.block_init = SeResidual(inputs, outputs)
        self.residual_block = nn.Sequential(
            *(
                nn.Sequential(
                    Convolution(outputs, outputs, double=True), SeResidual(outputs, outputs)
                )
                for _ in range(doublings)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.residual_block(self.block_init(x))


class _Up(nn.Module):
    """To twice the grid, beside what the encoder gives there."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.transp_conv = Convolution(inputs, outputs, double=True)
        self.res_block = SeResidual(2 * outputs, outputs)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return self.res_block(torch.cat([self.transp_conv(x), beside], dim=1))


class PromptDecoupledModule(nn.Module):
    """PDMM: a U-Net's decoder over an encoder's inner maps.

    Args:
        maps: of the encoder, shallow to deep.
        labels: masks to draw.

    Raises:
        ValueError: a map of a side that no doubling brings to its level.
    """

    def __init__(self, maps: Sequence[InnerMap], labels: int = 1) -> None:
        super().__init__()
        deep_to_shallow = list(reversed(maps))
        contexts = []
        for level, (inner, width) in enumerate(zip(deep_to_shallow, WIDTHS, strict=True)):
            doublings = level - (inner.times.bit_length() - 1)
            if inner.times not in (1, 2, 4) or doublings < 0:
                raise ValueError(f"a map of {inner.times} times the embedding's side at {level}")
            contexts.append(_Context(inner.channels, width, doublings))
        self.conv_blocks_context = nn.ModuleList(contexts)
        self.mask_embedding_fusion = SeResidual(WIDTHS[0] + EMBEDDING_CHANNELS, WIDTHS[0])
        self.conv_blocks_localization = nn.ModuleList(
            _Up(WIDTHS[level], WIDTHS[level + 1]) for level in range(len(WIDTHS) - 1)
        )
        self.seg_output = nn.Conv2d(WIDTHS[-1], labels, kernel_size=1, bias=False)

    def contexts(self, inner: Sequence[Tensor]) -> list[Tensor]:
        """The part that no prompt changes, deep to shallow; of `[B, ...]` maps."""
        blocks = zip(self.conv_blocks_context, reversed(inner), strict=True)
        return [block(features) for block, features in blocks]

    def draw(self, contexts: Sequence[Tensor], mask_embedding: Tensor) -> Tensor:
        """Mask logits `[N, labels, 4 E, 4 E]` of N mask embeddings and as many contexts."""
        x = self.mask_embedding_fusion(torch.cat([mask_embedding, contexts[0]], dim=1))
        for up, beside in zip(self.conv_blocks_localization, contexts[1:], strict=True):
            x = up(x, beside)
        return self.seg_output(x)


class DeSamDecoder(nn.Module):
    """What learns: PRIM and PDMM, for the labels of one modality."""

    def __init__(self, maps: Sequence[InnerMap], labels: int = 1) -> None:
        super().__init__()
        self.labels = labels
        self.prim = PromptRelevantModule(labels)
        self.pdmm = PromptDecoupledModule(maps, labels)


class DeSam(nn.Module):
    """A frozen encoder, SAM's prompt encoder, and a decoder for each modality.

    Args:
        encoder: a module that is a `FeatureEncoder`. It may serve other networks too.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.prompt_encoder = PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(64, 64),
            input_image_size=(PROMPT_FRAME, PROMPT_FRAME),
            mask_in_chans=16,
        )
        self.decoders = nn.ModuleDict()

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities in memory."""
        return list(self.decoders)

    @property
    def inner_maps(self) -> tuple[InnerMap, InnerMap, InnerMap]:
        """Shapes of the encoder's inner maps."""
        maps: tuple[InnerMap, InnerMap, InnerMap] = self.encoder.inner_maps  # type: ignore[assignment]
        return maps

    def add_modality(self, name: str, decoder: DeSamDecoder | int) -> None:
        """Put a modality beside the others, in place of one of the same name.

        Args:
            name: without dots.
            decoder: its decoder, or the number of its labels for a fresh one.
        """
        if isinstance(decoder, int):
            decoder = DeSamDecoder(self.inner_maps, decoder)
        place = next(self.encoder.parameters()).device
        self.decoders[name] = decoder.to(place).train(self.training)

    def sharing(self) -> DeSam:
        """Another network on the same modules; modalities added to it leave this one as it is."""
        other = DeSam.__new__(DeSam)
        nn.Module.__init__(other)
        other.training = self.training
        other.encoder, other.prompt_encoder = self.encoder, self.prompt_encoder
        other.decoders = nn.ModuleDict(dict(self.decoders.items())).train(self.training)
        return other

    def decoder(self, modality: str) -> DeSamDecoder:
        """A modality's decoder. Raises KeyError where there is none."""
        decoder = self.decoders[modality]
        assert isinstance(decoder, DeSamDecoder)
        return decoder

    def encode(self, image: Tensor) -> Features:
        """What the encoder gives for images `[B, 3, S, S]` in [0, 1]."""
        features: Features = self.encoder.features(image)  # type: ignore[operator]
        return features

    def whole_box(self, count: int = 1) -> Tensor:
        """SAM's tokens of a box around the whole image, `[count, 2, 256]`."""
        place = self.prompt_encoder.no_mask_embed.weight
        frame = [0.0, 0.0, PROMPT_FRAME, PROMPT_FRAME]
        boxes = torch.tensor([frame], device=place.device).expand(count, -1)
        return self._tokens(None, boxes)

    def points(self, places: Tensor) -> Tensor:
        """SAM's tokens of one point each, `[N, 2, 256]`.

        Args:
            places: column and row in the prompt's frame of 1024, `[N, 2]`. All count as in the
                structure: whether they are, the predicted IoU is to tell.
        """
        labels = torch.ones(len(places), 1, dtype=torch.int, device=places.device)
        return self._tokens((places.unsqueeze(1).float(), labels), None)

    def relate(self, modality: str, embedding: Tensor, prompts: Tensor) -> Prompted:
        """PRIM on embeddings `[N, 256, E, E]` and the tokens of as many prompts.

        A single embedding serves all prompts.
        """
        no_mask = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        with torch.autocast(embedding.device.type, enabled=False):
            # the code of a place turns many times across the image: not in bfloat16
            position = self.prompt_encoder.pe_layer(tuple(embedding.shape[-2:])).unsqueeze(0)
        image = (embedding + no_mask).expand(len(prompts), -1, -1, -1)
        prim: PromptRelevantModule = self.decoder(modality).prim
        related: Prompted = prim(image, position.to(embedding.dtype), prompts.to(embedding.dtype))
        return related

    def forward(self, features: Features, modality: str, prompts: Tensor) -> DeSamOutput:
        """Masks of B images, one prompt each.

        Args:
            features: of `encode`.
            modality: a name.
            prompts: tokens `[B, T, 256]`.

        Raises:
            KeyError: no such modality.
        """
        related = self.relate(modality, features.embedding, prompts)
        pdmm = self.decoder(modality).pdmm
        masks = pdmm.draw(pdmm.contexts(features.inner), related.mask_embedding)
        return DeSamOutput(masks, related.iou)

    def _tokens(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None) -> Tensor:
        place = self.prompt_encoder.no_mask_embed.weight
        with torch.autocast(place.device.type, enabled=False):
            tokens: Tensor = self.prompt_encoder(points=points, boxes=boxes, masks=None)[0]
        return tokens
