"""A small bundle on the real backbone, and networks whose masks are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.starting import add_fresh_modality, new_network
from esp_medsam_app.weights import Bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import save_description
from esp_medsam_app.weights.versions import VersionStore

SIDE = 64
ONE = Modality(name="one", title="One", description="Of a.", dimension=2, labels={"a": 1})
TWO = Modality(
    name="two", title="Two", description="Of b and c.", dimension=2, labels={"b": 1, "c": 2}
)
NEW = Modality(name="new", title="New", description="Of d.", dimension=2, labels={"d": 1})


def small_bundle(folder: Path) -> Bundle:
    """The modalities ONE and TWO, for inputs of 64 pixels."""
    bundle = save_bundle(
        folder,
        changed(changed(new_network(LITE_MEDSAM, [ONE, TWO]), ONE, 1), TWO, 2),
        [ONE, TWO],
        name="small",
        backbone=LITE_MEDSAM,
        training={},
    )
    small = bundle.description.model_copy(update={"input_size": SIDE})
    save_description(Bundle(folder, small))
    return Bundle(folder, small)


def changed(network: EspMedSam, modality: Modality, seed: int) -> EspMedSam:
    """The network with other weights of a modality, as after a training."""
    if modality.name not in network.modalities:
        add_fresh_modality(network, LITE_MEDSAM, modality)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, strength in ((network.controllers, 0.002), (network.queries, 0.5)):
            for parameter in part[modality.name].parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(strength * noise)
    return network


def add_versions(store: VersionStore, modality: Modality, count: int, first: int = 1) -> None:
    """Versions that nothing judged, of networks that nothing trained."""
    for seed in range(first, first + count):
        names = [name for name in (modality.name,) if name in store.base.modalities]
        network = changed(store.base.load_network(names), modality, seed)
        store.add(network, modality, state="published", parent=0)


def picture() -> MedicalImage:
    """Discs on noise."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    voxels = np.random.default_rng(0).normal(60, 12, (SIDE, SIDE))
    for row, column in ((20, 20), (40, 45)):
        voxels += 120 * ((rows - row) ** 2 + (columns - column) ** 2 < 144)
    grid = Grid(shape=(SIDE, SIDE), affine=np.eye(4), has_patient_space=False, nifti_header=None)
    return MedicalImage(
        voxels=voxels.clip(0, 255).astype(np.uint8), grid=grid, path=None, dicom_modality=None
    )
