"""What DeSAM's training starts from: released weights where there are some."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.desam import DeSam, DeSamDecoder
from esp_medsam_app.training.starting import seeded
from esp_medsam_app.weights.desam_encoders import (
    load_feature_encoder,
    start_decoder,
    start_prompt_encoder,
)


def new_desam(encoder: str, modalities: Iterable[Modality] = (), *, seed: int = 0) -> DeSam:
    """An untrained network on a released encoder.

    Args:
        encoder: its name, see `weights.desam_encoders`.
        modalities: what it has.
        seed: of all that starts random. Same seed, same network, in every process.

    Raises:
        WeightsError: the encoder is missing or damaged.
        UnknownNameError: there is none of that name.
    """
    with seeded(seed):
        network = DeSam(load_feature_encoder(encoder))
    start_prompt_encoder(network, encoder)
    network.eval().requires_grad_(False)
    for modality in modalities:
        add_fresh_decoder(network, encoder, modality, seed=seed)
    return network


def add_fresh_decoder(network: DeSam, encoder: str, modality: Modality, *, seed: int = 0) -> None:
    """Put an untrained modality beside those of a network: PRIM as released, a random PDMM."""
    with seeded(seed + zlib.crc32(modality.name.encode())):
        decoder = DeSamDecoder(network.inner_maps, len(modality.labels))
    start_decoder(decoder, encoder)
    network.add_modality(modality.name, decoder)
