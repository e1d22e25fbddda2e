"""Versions that were trained elsewhere, from a file."""

from __future__ import annotations

from pathlib import Path

import torch

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.weights.bundle import load_owned
from esp_medsam_app.weights.integrity import read_safetensors
from esp_medsam_app.weights.version_files import Version
from esp_medsam_app.weights.versions import VersionStore


def import_version(store: VersionStore, name: str, file: Path, reason: str) -> Version:
    """Keep the weights of a modality as a new version, after a look that they work. It serves not.

    Args:
        store: of the versions.
        name: of the modality.
        file: safetensors, as `weights.safetensors` of a version or `controllers/<name>.safetensors`
            of a bundle; nothing in it is ever run.
        reason: for the history.

    Raises:
        UnknownNameError: there is no such modality.
        WeightsError: not safetensors, made for another network, or of no sensible values.
        EspMedSamError: the version cannot be written.
    """
    modality = store.base.modalities.get(name) or store.added.get(name)
    if modality is None:
        known = ", ".join(sorted({*store.base.modalities, *store.added}))
        raise UnknownNameError(f"there is no modality {name!r}", remedy=f"Available: {known}")
    for key, tensor in read_safetensors(file).items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{key} has values that are not finite", path=file)
    network = store.base.load_network([])
    load_owned(network, modality, file)
    network.eval().requires_grad_(False)
    side = store.base.description.input_size
    with torch.inference_mode():
        masks = network(torch.zeros(1, 3, side, side), name).mask_logits
    if not torch.isfinite(masks).all():
        raise WeightsError("the network makes nothing sensible with it", path=file)
    return store.add(network, modality, state="kept_back", parent=None, reason=reason)
