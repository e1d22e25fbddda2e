"""The starter weights of one modality with a small input: a pass or a training takes no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import load_bundle, save_bundle, starter_bundle_path

# the pictures are of 48 x 48 pixels
TILE = 64


def small_starter(folder: Path) -> Path:
    """A bundle of nuclei; its folder."""
    starter = load_bundle(starter_bundle_path())
    nuclei = starter.modality("microscopy_nuclei")
    network = starter.load_network([nuclei.name])
    backbone = replace(LITE_MEDSAM, input_size=TILE)
    save_bundle(folder, network, [nuclei], name="small", backbone=backbone, training={})
    return folder
