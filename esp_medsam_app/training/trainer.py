"""Supervised training: SPPG, QDMD and controllers of several modalities at once.

The same function trains a teacher: a network whose encoder learns instead of controllers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.arithmetic import Arithmetic, choose_arithmetic
from esp_medsam_app.training.groups import (
    controller_groups,
    encoder_groups,
    query_groups,
    shared_groups,
)
from esp_medsam_app.training.inputs import (
    decoder_turns,
    embeddings_of,
    features_of,
    joint_turns,
    make_views,
)
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.training.optimisation import CHECKPOINT, Checkpoint, Phase, optimise
from esp_medsam_app.training.passes import Pass, Passes
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.sources import Batch, BatchSource, CachedFeatures, FreshViews
from esp_medsam_app.training.surroundings import Surroundings


@dataclass(frozen=True)
class Learners:
    """What a run trains beside the controllers and queries of its modalities.

    Attributes:
        shared: decoder and SPPG, which changes what every modality gives.
        encoder: the backbone: of a teacher alone.
    """

    shared: bool = True
    encoder: bool = False


DECODERS_TOO = Learners()


def train(
    network: EspMedSam,
    caches: Mapping[str, SliceCache],
    modalities: Sequence[Modality],
    recipe: Recipe,
    *,
    tile: int,
    place: Surroundings,
    learners: Learners = DECODERS_TOO,
) -> EspMedSam:
    """Train a network's modalities together, in the two phases of the recipe.

    Args:
        network: it has all of `modalities`. It is changed.
        caches: slices of each modality's cases, by name.
        modalities: what to train. What others of the network give stays as it is, bit by bit, if
            the shared parts do not learn.
        recipe: all numbers.
        tile: side of the network's input, pixels.
        place: folder, device, processes.
        learners: which shared parts learn.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: a loss that is no number, a damaged checkpoint.
    """
    torch.manual_seed(recipe.seed)
    # batch norm keeps its statistics
    network.to(place.device).eval()
    names = tuple(modality.name for modality in modalities)
    arithmetic = choose_arithmetic(network, names[0], place)
    arithmetic.prepare(network)
    views = make_views(caches, modalities, recipe, tile)
    checkpoint = Checkpoint(
        place.work / CHECKPOINT,
        network,
        lambda name: learners.encoder or not name.startswith("encoder."),
    )
    steps = _Steps(network, recipe, arithmetic, place)
    stored = features_of(network, views, recipe, place) if recipe.cached_stage else {}
    if recipe.decoder_steps and not checkpoint.finished("decoder"):
        order = decoder_turns(names, recipe)
        source: BatchSource = FreshViews(views, order, place.workers, arithmetic.device)
        if stored:
            source = CachedFeatures(embeddings_of(network, stored, recipe, place), order)
        groups = query_groups(network, names, recipe.decoder_rate)
        if learners.shared:
            groups += shared_groups(network, recipe, recipe.decoder_rate)
        losses = steps.on_embeddings if stored else steps.on_frozen_embeddings
        phase = Phase("decoder", recipe.decoder_steps, groups, source, losses)
        optimise(phase, recipe, checkpoint, place)
    if recipe.joint_steps:
        order = joint_turns(names, recipe)
        source = (
            CachedFeatures(stored, order)
            if stored
            else FreshViews(
                views,
                order,
                place.workers,
                arithmetic.device,
                pinned=place.speed != "graphs",
            )
        )
        groups = query_groups(network, names, recipe.joint_decoder_rate)
        groups += controller_groups(network, names, recipe.controller_rate)
        if learners.shared:
            groups += shared_groups(network, recipe, recipe.joint_decoder_rate)
        if learners.encoder:
            groups += encoder_groups(network, recipe)
        phase = Phase("joint", recipe.joint_steps, groups, source, steps.on_features)
        optimise(phase, recipe, checkpoint, place)
    network.cpu().to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False)


class _Steps:
    """From a batch to its losses."""

    def __init__(
        self, network: EspMedSam, recipe: Recipe, arithmetic: Arithmetic, place: Surroundings
    ) -> None:
        self.network = network
        self.arithmetic = arithmetic
        self.loss = SegmentationLoss(recipe.patch_weight, recipe.pixel_loss)
        # gradients that are added up need memory of their own
        speed = place.speed if recipe.accumulate == 1 else "plain"
        self.passes = Passes(
            lambda name: Pass(network, name, recipe.cached_stage, self.loss, arithmetic),
            speed,
            arithmetic.device,
        )

    def on_features(self, batch: Batch) -> Mapping[str, Tensor]:
        """Through the encoder from the cached stage on, under the modality's controller."""
        inputs = self.arithmetic.inputs(batch.inputs)
        return self.passes(batch.modality, inputs, self._labels(batch))._asdict()

    def on_embeddings(self, batch: Batch) -> Mapping[str, Tensor]:
        """Through the decoder alone."""
        inputs = self.arithmetic.inputs(batch.inputs)
        with self.arithmetic.context():
            return self._decoded(inputs, batch)

    def on_frozen_embeddings(self, batch: Batch) -> Mapping[str, Tensor]:
        """Through an encoder that does not learn, then the decoder."""
        inputs = self.arithmetic.inputs(batch.inputs)
        with self.arithmetic.context():
            with torch.no_grad():
                embedding = self.network.embed(inputs, batch.modality)
            return self._decoded(embedding, batch)

    def _decoded(self, embedding: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        masks, patches = self.network.decode(embedding, batch.modality)
        return self.loss(masks, patches, self._labels(batch))._asdict()

    def _labels(self, batch: Batch) -> Tensor:
        return batch.labels.to(self.arithmetic.device, non_blocking=True)
