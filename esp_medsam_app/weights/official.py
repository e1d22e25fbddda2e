"""Import of the authors' own ESP-MedSAM checkpoints (xq141839/De-LightSAM, Apache-2.0).

Such a file holds one modality controller, seven queries of which six are decoded, and one
hyper-network MLP that they share. Order of the queries: 0 dermoscopy, 1 X-ray, 2 ultrasound,
3 fundus, 4 microscopy, 5 colonoscopy. Input: RGB 0..255 resized to 1024 x 1024 without padding,
normalised as (x - mean) / mean with mean [123.675, 116.28, 103.53] (the authors' code divides by
the mean, and their weights depend on it).
"""

from __future__ import annotations

import re
from pathlib import Path

from esp_medsam_app.networks.esp_medsam import EspMedSam
from esp_medsam_app.networks.modality_decoder import ModalityQueries
from esp_medsam_app.networks.tiny_vit import DEPTHS, TinyViT
from esp_medsam_app.weights.integrity import load_strictly, read_checkpoint

OFFICIAL_MODALITY = "official"
OFFICIAL_QUERIES = ("dermoscopy", "xray", "ultrasound", "fundus", "microscopy", "colonoscopy")

_CONTROLLER = re.compile(
    r"layers\.(?P<stage>\d)\.blocks\.(?P<block>\d)\."
    r"(?:(?P<token>attn\.deep_QKV_embeddings_med)"
    r"|(?P<bias>attn\.med_attention_biases)"
    r"|med_dah\.(?P<expert>.+))$"
)
_RENAMED = (
    ("mask_decoder.transformer.", "decoder.transformer."),
    ("mask_decoder.output_upscaling.", "decoder.upscaling."),
    ("mask_decoder.output_hypernetworks_mlps.0.", f"queries.{OFFICIAL_MODALITY}.mlp."),
    ("mask_query.", f"queries.{OFFICIAL_MODALITY}.tokens."),
    ("patch_decoder.", "patch_prompt_generator.patch_decoder."),
    ("dense_prompter.", "patch_prompt_generator.dense_prompter."),
)


def load_official_checkpoint(path: str | Path) -> EspMedSam:
    """Build the network of an official checkpoint, in evaluation mode.

    `model(image, query=k)` with an image `[B, 3, 1024, 1024]` returns `mask_logits`
    `[B, 1, 1024, 1024]`, `patch_logits` `[B, 1, 32, 32]` and `image_embedding` `[B, 256, 64, 64]`.

    Raises:
        WeightsError: missing, damaged, or not such a checkpoint.
    """
    path = Path(path)
    model = EspMedSam(TinyViT(stem_stride=4))
    model.add_modality(OFFICIAL_MODALITY, ModalityQueries(7, decoded=len(OFFICIAL_QUERIES)))
    tensors = {
        _own_name(name): tensor
        for name, tensor in read_checkpoint(path).items()
        if not name.startswith(("SemiTViT.norm_head.", "SemiTViT.head."))
    }
    load_strictly(model, tensors, path)
    return model.eval()


def _own_name(name: str) -> str:
    if name.startswith("SemiTViT."):
        inner = name.removeprefix("SemiTViT.")
        match = _CONTROLLER.match(inner)
        if match is None:
            return f"encoder.{inner}"
        block = sum(DEPTHS[1 : int(match["stage"])]) + int(match["block"])
        leaf = (
            "token"
            if match["token"]
            else "token_bias"
            if match["bias"]
            else f"expert.{match['expert']}"
        )
        return f"controllers.{OFFICIAL_MODALITY}.blocks.{block}.{leaf}"
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


__all__ = ["OFFICIAL_MODALITY", "OFFICIAL_QUERIES", "load_official_checkpoint"]
