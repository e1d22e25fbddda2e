"""Import of the DeSAM authors' own checkpoints (yifangao112/DeSAM, MIT).

Such a file holds SAM's prompt encoder and DeSAM's mask decoder, for one structure; SAM's ViT may be
in it too and is not read: it is SAM's own, frozen. The ViT's width shows in the shapes. Their IoU
head has four outputs as SAM's has, of which the first counts; their deep supervision is off.

They were trained on slices of 256 x 256, enlarged to 1024 and normalised as SAM's input is.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from esp_medsam_app.errors import InputError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.desam import PROMPT_FRAME, DeSam, DeSamDecoder
from esp_medsam_app.networks.features import InnerMap
from esp_medsam_app.networks.tiny_vit import EMBEDDING_CHANNELS
from esp_medsam_app.weights.desam_bundle import DeSamBundle, save_desam
from esp_medsam_app.weights.desam_prompts import PROMPT_MODES, PromptMode
from esp_medsam_app.weights.integrity import load_strictly, read_checkpoint

_DECODER, _PROMPTS = "mask_decoder.", "prompt_encoder."
_UNUSED = ("output_upscaling.", "output_hypernetworks_mlps.", "pimm.seg_outputs.0.")
_RENAMED = (("pimm.seg_outputs.1.", "pdmm.seg_output."), ("pimm.", "pdmm."), ("", "prim."))
_IOU = "iou_prediction_head.layers.2."
_WIDTH = "mask_decoder.pimm.conv_blocks_context.0.block_init.conv1.conv.weight"
# by the width of their blocks
_ENCODERS = {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}


class OfficialDeSam(NamedTuple):
    """What such a checkpoint holds, in evaluation mode.

    Attributes:
        prompt_encoder: SAM's.
        decoder: for one label, over a ViT of the width below.
        width: of the ViT's blocks: 768 (B), 1024 (L), 1280 (H).
    """

    prompt_encoder: PromptEncoder
    decoder: DeSamDecoder
    width: int


def load_official_desam(path: str | Path) -> OfficialDeSam:
    """Read an official checkpoint.

    Raises:
        WeightsError: missing, damaged, or not such a checkpoint.
    """
    path = Path(path)
    tensors = read_checkpoint(path)
    if _WIDTH not in tensors or tensors[_WIDTH].ndim != 4:
        raise WeightsError(
            f"no DeSAM checkpoint: {_WIDTH} is missing",
            path=path,
            remedy="Give a file that DeSAM's own training wrote",
        )
    width = int(tensors[_WIDTH].shape[1])
    if width not in _ENCODERS:
        raise WeightsError(f"none of SAM's encoders has blocks of width {width}", path=path)
    inner = InnerMap(width)
    decoder = DeSamDecoder((inner, inner, inner))
    load_strictly(decoder, _decoder_tensors(tensors, decoder), path)
    prompt_encoder = PromptEncoder(
        embed_dim=EMBEDDING_CHANNELS,
        image_embedding_size=(64, 64),
        input_image_size=(PROMPT_FRAME, PROMPT_FRAME),
        mask_in_chans=16,
    )
    load_strictly(
        prompt_encoder,
        {k.removeprefix(_PROMPTS): v for k, v in tensors.items() if k.startswith(_PROMPTS)},
        path,
    )
    return OfficialDeSam(prompt_encoder.eval(), decoder.eval(), width)


def official_bundle(
    checkpoint: str | Path, output: str | Path, modality: Modality, prompt: PromptMode | None
) -> DeSamBundle:
    """Make a bundle of an official checkpoint. SAM's encoder itself is no part of it.

    Args:
        checkpoint: the file.
        output: folder of the bundle.
        modality: what it was trained on, of one label.
        prompt: that it was trained with; unknown by default: either may be tried.

    Raises:
        WeightsError: missing, damaged, or not such a checkpoint.
        InputError: a modality of several labels.
    """
    if len(modality.labels) != 1:
        raise InputError(
            f"{modality.name} has {len(modality.labels)} labels, and such a checkpoint one",
            path=checkpoint,
            remedy="Describe what it was trained on in a YAML file of one label",
        )
    official = load_official_desam(checkpoint)
    network = DeSam(nn.Linear(1, 1))
    network.prompt_encoder = official.prompt_encoder
    network.add_modality(modality.name, official.decoder)
    return save_desam(
        output,
        network,
        [modality],
        name="DeSAM, its authors' weights",
        encoder=_ENCODERS[official.width],
        prompts=(prompt,) if prompt is not None else PROMPT_MODES,
        training={"imported": Path(checkpoint).name},
    )


def _decoder_tensors(tensors: dict[str, Tensor], decoder: DeSamDecoder) -> dict[str, Tensor]:
    own, known = {}, decoder.state_dict().keys()
    for name, tensor in tensors.items():
        inner = name.removeprefix(_DECODER)
        if inner == name or inner.startswith(_UNUSED):
            continue
        if inner.startswith(_IOU):
            tensor = tensor[:1]
        old, new = next(pair for pair in _RENAMED if inner.startswith(pair[0]))
        renamed = new + inner.removeprefix(old)
        # their blocks hold a 1x1 shortcut that is unused where the channels stay the same
        if renamed in known or not renamed.endswith(".conv3.conv.weight"):
            own[renamed] = tensor
    return own
