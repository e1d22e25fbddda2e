"""What a training starts from."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.esp_medsam import WHOLE, Design
from esp_medsam_app.weights.backbones import (
    Backbone,
    load_encoder,
    starting_decoder,
    starting_queries,
)
from esp_medsam_app.weights.bundle import Bundle, load_owned


def new_network(
    backbone: Backbone,
    modalities: Sequence[Modality],
    *,
    design: Design = WHOLE,
    encoder: nn.Module | None = None,
    seed: int = 0,
) -> EspMedSam:
    """An untrained network: the backbone's own decoder, fresh SPPG, queries and controllers.

    Args:
        backbone: whose encoder and decoder it takes.
        modalities: what it has.
        design: which parts it has.
        encoder: in place of the backbone's, a teacher's for example.
        seed: of all that starts random. Same seed, same network, in every process.

    Raises:
        WeightsError: the backbone is missing or damaged.
    """
    if encoder is None:
        encoder = load_encoder(backbone)
    with seeded(seed):
        network = EspMedSam(encoder, design)
    decoder, prompt_encoder = starting_decoder(backbone)
    network.decoder.load_state_dict(decoder)
    network.prompt_encoder.load_state_dict(prompt_encoder)
    for modality in modalities:
        add_fresh_modality(network, backbone, modality, seed=seed)
    return network


def add_fresh_modality(
    network: EspMedSam, backbone: Backbone, modality: Modality, *, seed: int = 0
) -> None:
    """Put an untrained modality beside those of a network: a neutral controller, fresh queries."""
    with seeded(seed + zlib.crc32(modality.name.encode())):
        network.add_modality(modality.name, starting_queries(backbone, len(modality.labels)))


def network_of(bundle: Bundle, modality: Modality, weights: Path | None = None) -> EspMedSam:
    """A bundle's network with one modality: its own, or an untrained one where it has none.

    Args:
        bundle: whose shared weights it takes.
        modality: what the network has.
        weights: a file of `save_modality` that takes the place of the bundle's, if it is there.

    Raises:
        WeightsError: a file is missing, damaged or does not fit.
    """
    known = modality.name in bundle.modalities
    network = bundle.load_network([modality.name] if known else [])
    if not known:
        add_fresh_modality(network, bundle.backbone, modality)
    if weights is not None and weights.is_file():
        load_owned(network, modality, weights)
    return network.eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed inside, as if nothing had happened outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
