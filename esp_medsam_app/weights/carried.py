"""A bundle that needs nothing beside it: for a machine that has not the package of the backbone."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from esp_medsam_app.weights.backbones import STARTING_QUERIES, load_encoder, queries_to_start_from
from esp_medsam_app.weights.bundle import (
    DECODER,
    OWN_BACKBONE,
    BackboneReference,
    Bundle,
    controller_file,
    save_description,
)
from esp_medsam_app.weights.integrity import check_sha256, sha256_of


def carry_bundle(bundle: Bundle, output: Path, names: Collection[str]) -> Bundle:
    """Write a bundle with its backbone, whose matrices are in float16, into a folder.

    The rounding of the backbone is smaller than that of a pass in bfloat16. What is trained there
    belongs to the bundle that this one was made from.

    Args:
        bundle: of ESP-MedSAM.
        output: folder that is written.
        names: modalities that come along; untrained ones can be added there.

    Raises:
        WeightsError: a file is missing or damaged.
    """
    backbone = bundle.backbone
    files = [DECODER, *(controller_file(name) for name in names)]
    for file in files:
        check_sha256(bundle.file(file), bundle.description.files[file])
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(file), output / file)
    encoder = load_encoder(backbone).state_dict()
    for file, tensors in (
        (OWN_BACKBONE, encoder),
        (STARTING_QUERIES, queries_to_start_from(backbone)),
    ):
        (output / file).write_bytes(save({k: _halved(v) for k, v in tensors.items()}))
        files.append(file)
    said = bundle.description
    reference = BackboneReference(
        name=backbone.name,
        sha256=sha256_of(output / OWN_BACKBONE),
        stem_stride=backbone.stem_stride,
    )
    left_behind = [name for name in bundle.modalities if name not in names]
    description = said.model_copy(
        update={
            **said.told_but_of(left_behind),
            "backbone": reference,
            "modalities": [bundle.modality(name) for name in names],
            "modality_classifier": None,
            "files": {file: sha256_of(output / file) for file in files},
        }
    )
    carried = Bundle(output, description)
    save_description(carried)
    return carried


def _halved(tensor: Tensor) -> Tensor:
    """Matrices in float16; vectors, nearly nothing of the file, as they are."""
    whole = tensor.detach().cpu().contiguous()
    return whole.to(torch.float16) if whole.ndim > 1 and whole.is_floating_point() else whole
