"""The encoders that DeSAM stands on, by name, and the decoder that each was released with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from esp_medsam_app.errors import UnknownNameError
from esp_medsam_app.networks.desam import DeSam, DeSamDecoder
from esp_medsam_app.networks.sam_features import SamFeatures
from esp_medsam_app.networks.sam_teacher import SamInput
from esp_medsam_app.weights.backbones import BACKBONES, below, get_backbone, load_encoder, verified
from esp_medsam_app.weights.integrity import check_sha256, load_strictly, read_checkpoint
from esp_medsam_app.weights.sam_checkpoints import load_sam_encoder
from esp_medsam_app.weights.sam_downloads import SAM_RELEASES, get_release

# Masks have four times the embedding's side, 256, whatever the encoder makes of the image inside.
SAM_TILE = 256


class EncoderFacts(NamedTuple):
    """What a bundle says of its encoder.

    Attributes:
        name: `lite_medsam`, `sam_vit_b`, ...
        sha256: of its file.
        tile: side of the images it is given, pixels.
    """

    name: str
    sha256: str
    tile: int


def encoder_names() -> list[str]:
    """All encoders that DeSAM can be trained on."""
    return [*BACKBONES, *SAM_RELEASES]


def encoder_facts(name: str) -> EncoderFacts:
    """What is known of an encoder before it is loaded.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name in BACKBONES:
        backbone = get_backbone(name)
        return EncoderFacts(name, backbone.sha256, backbone.input_size)
    if name not in SAM_RELEASES:
        raise UnknownNameError(
            f"there is no encoder {name!r}", remedy=f"Known: {', '.join(encoder_names())}"
        )
    return EncoderFacts(name, get_release(name).sha256, SAM_TILE)


def encoder_origin(name: str) -> str:
    """Where an encoder comes from, with its licence. Raises UnknownNameError."""
    if name in BACKBONES:
        backbone = get_backbone(name)
        return f"{backbone.origin} ({backbone.licence})"
    return f"{get_release(name).file}, released with segment-anything (Apache-2.0)"


def load_feature_encoder(name: str) -> nn.Module:
    """An encoder of images in [0, 1] that is a `FeatureEncoder`, frozen, in evaluation mode.

    Raises:
        WeightsError: missing, damaged or unfit file.
        UnknownNameError: there is none of that name.
    """
    if name in BACKBONES:
        return load_encoder(get_backbone(name))
    release = get_release(name)
    path = release.fetched()
    check_sha256(path, release.sha256)
    vit = load_sam_encoder(path)
    return SamFeatures(vit, SamInput(vit.img_size)).eval().requires_grad_(False)


def start_prompt_encoder(network: DeSam, name: str) -> None:
    """Give a network the prompt encoder that its encoder was released with."""
    tensors = _released(name)
    load_strictly(network.prompt_encoder, below(tensors, "prompt_encoder."), _file(name))


def start_decoder(decoder: DeSamDecoder, name: str) -> None:
    """Give a fresh decoder's PRIM the released transformer, tokens and IoU head."""
    tensors = below(_released(name), "mask_decoder.")
    prim = decoder.prim
    own = {key: tensors[key] for key in prim.state_dict() if key in tensors}
    for key in own:
        if key.startswith("iou_prediction_head.layers.2."):
            # of SAM's four the first is that of a prompt's one mask
            own[key] = own[key][[0] * decoder.labels]
    load_strictly(prim, own, _file(name))


def _released(name: str) -> dict[str, Tensor]:
    if name in BACKBONES:
        return verified(get_backbone(name))
    release = get_release(name)
    path = release.fetched()
    check_sha256(path, release.sha256)
    return read_checkpoint(path)


def _file(name: str) -> Path:
    return get_backbone(name).path() if name in BACKBONES else get_release(name).path
