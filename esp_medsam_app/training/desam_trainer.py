"""DeSAM's training: the decoder of one modality after the other, on a frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from esp_medsam_app.inference.device import autocast
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.desam import DeSam
from esp_medsam_app.training.desam_features import (
    DEFAULT_FEATURE_BYTES,
    BoundedFeatures,
    Views,
    encoding,
    restored,
)
from esp_medsam_app.training.desam_losses import DeSamLoss, hits_of, in_frame, random_points
from esp_medsam_app.training.desam_recipe import DeSamRecipe
from esp_medsam_app.training.inputs import placed, views_of
from esp_medsam_app.training.optimisation import Checkpoint, Phase, optimise
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.slice_tiles import SliceTiles
from esp_medsam_app.training.sources import Batch, Turns
from esp_medsam_app.training.surroundings import Surroundings


def train_desam(
    network: DeSam,
    caches: Mapping[str, SliceCache],
    modalities: Sequence[Modality],
    recipe: DeSamRecipe,
    *,
    tile: int,
    place: Surroundings,
    feature_bytes: int = DEFAULT_FEATURE_BYTES,
) -> DeSam:
    """Train decoders; encoder, prompt encoder and other modalities' decoders stay as they are.

    Args:
        network: it has all of `modalities`. It is changed.
        caches: slices of each modality's cases, by name.
        modalities: what to train.
        recipe: all numbers.
        tile: side of the network's input, pixels.
        place: folder, device, processes.
        feature_bytes: what the encoder's maps of one modality may take on disk. Views beyond it
            go through the encoder each time.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: a loss that is no number, a damaged checkpoint.
    """
    torch.manual_seed(recipe.seed)
    network.to(place.device).eval().requires_grad_(False)
    encode = encoding(network, torch.device(place.device))
    for modality in modalities:
        name = modality.name
        views, count = _views(caches, modality, modalities, recipe, tile)
        steps = recipe.steps(count)
        decoder = network.decoder(name)
        checkpoint = Checkpoint(place.work / f"checkpoint_{name}.pt", decoder, lambda key: True)
        if not steps or checkpoint.finished(name):
            continue
        source = BoundedFeatures(
            place.work / "features" / name,
            views,
            Turns((name,), recipe.batch, count, recipe.seed),
            encode,
            limit_bytes=feature_bytes,
            place=place,
        )
        groups = [{"params": list(decoder.parameters()), "lr": recipe.rate}]
        phase = Phase(name, steps, groups, source, DeSamSteps(network, recipe, place.device))
        optimise(phase, recipe, checkpoint, place)
    return network.cpu().eval().requires_grad_(False)


class DeSamSteps:
    """From a batch to its losses. Its prompts depend on the seed and the batch's number alone."""

    def __init__(self, network: DeSam, recipe: DeSamRecipe, device: str) -> None:
        self.network = network
        self.recipe = recipe
        self.device = torch.device(device)
        self.loss = DeSamLoss(recipe)

    def __call__(self, batch: Batch) -> Mapping[str, Tensor]:
        """The losses of `DeSamLosses`."""
        labels = batch.labels.to(self.device, non_blocking=True)
        mode = self.recipe.prompts[batch.number % len(self.recipe.prompts)]
        hits = None
        if mode == "whole_box":
            prompts = self.network.whole_box(len(labels))
        else:
            generator = torch.Generator().manual_seed(self.recipe.seed + 7919 * batch.number)
            places = random_points(batch.labels, generator)
            count = self.network.decoder(batch.modality).labels
            hits = hits_of(labels, places, count)
            frame = in_frame(places, labels.shape[-1])
            prompts = self.network.points(frame.to(self.device))
        features = restored(placed(batch.inputs, self.device), self.network)
        with autocast(self.device):
            masks, iou = self.network(features, batch.modality, prompts)
        return self.loss(masks, labels, iou, hits)._asdict()


def _views(
    caches: Mapping[str, SliceCache],
    modality: Modality,
    modalities: Sequence[Modality],
    recipe: DeSamRecipe,
    tile: int,
) -> tuple[Views, int]:
    """Views of a modality and their number."""
    cache = caches[modality.name]
    if recipe.views is not None:
        views = views_of(
            caches, modality, modalities, tile=tile, seed=recipe.seed, absent=recipe.absent
        )
        return views, recipe.views
    labelled = len(cache) - len(cache.empty)
    empty = round(labelled * recipe.absent / (1 - recipe.absent))
    tiles = SliceTiles(cache, modality, tile, empty=empty)
    return tiles, len(tiles)
