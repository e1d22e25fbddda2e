"""What training reads: views of every modality, and what is computed of them only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from esp_medsam_app.inference.device import autocast, autocast_type
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sizes import SizeSchedule
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.sources import Turns, compute_once
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.views import TrainingViews

Stored = Mapping[str, tuple[Tensor, Tensor]]


def make_views(
    caches: Mapping[str, SliceCache], modalities: Sequence[Modality], recipe: Recipe, tile: int
) -> dict[str, TrainingViews]:
    """Views of each modality. Slices of modalities from other devices count as foreign to it."""
    return {
        modality.name: views_of(
            caches,
            modality,
            modalities,
            tile=tile,
            seed=recipe.seed,
            absent=recipe.absent,
            labelled=recipe.labelled,
        )
        for modality in modalities
    }


def views_of(
    caches: Mapping[str, SliceCache],
    modality: Modality,
    modalities: Sequence[Modality],
    *,
    tile: int,
    seed: int,
    absent: float,
    labelled: float = 0.5,
) -> TrainingViews:
    """Augmented views of a modality; slices of those from other devices count as foreign."""
    return TrainingViews(
        caches[modality.name],
        modality,
        tile=tile,
        seed=seed,
        absent=absent,
        labelled=labelled,
        foreign=[
            caches[other.name]
            for other in modalities
            if not set(other.dicom_modalities) & set(modality.dicom_modalities)
            and other is not modality
        ],
    )


def embed_from(network: EspMedSam, inputs: Tensor, stage: int, modality: str) -> Tensor:
    """Embedding of images (stage 0) or of the features that enter a stage."""
    if not stage:
        return network.embed(inputs, modality)
    assert isinstance(network.encoder, TinyViT)
    return network.encoder.encode_from(inputs, stage, network.controller(modality))


def placed(stored: Tensor, device: torch.device) -> Tensor:
    """Stored features on the device, in what it computes in; images stay as precise as they are."""
    if stored.dtype != torch.bfloat16 or autocast_type(device) is not None:
        return stored.to(device, non_blocking=True)
    return stored.to(device, torch.float32)


def features_of(
    network: EspMedSam, views: Mapping[str, TrainingViews], recipe: Recipe, place: Surroundings
) -> Stored:
    """What enters the cached stage, of as many views of each modality as the run touches.

    Controllers of earlier stages act as they are; a run with cached features does not train them.
    """
    assert isinstance(network.encoder, TinyViT)
    encode_until = network.encoder.encode_until
    device = torch.device(place.device)
    return computed(
        f"features_{recipe.cached_stage}",
        tuple(views),
        _count(tuple(views), recipe),
        lambda name: views[name].__getitem__,
        lambda images, name: encode_until(
            images.to(device), recipe.cached_stage, network.controller(name)
        ),
        place,
    )


def embeddings_of(
    network: EspMedSam, stored: Stored, recipe: Recipe, place: Surroundings
) -> Stored:
    """Embeddings of the cached features, under controllers as they are."""
    device = torch.device(place.device)

    def items(name: str) -> Callable[[int], tuple[Tensor, Tensor]]:
        features, labels = stored[name]
        return lambda number: (features[number], labels[number])

    return computed(
        "embeddings",
        tuple(stored),
        decoder_turns(tuple(stored), recipe).views or 0,
        items,
        lambda inputs, name: embed_from(network, placed(inputs, device), recipe.cached_stage, name),
        place,
    )


def targets_of(
    teacher: EspMedSam, views: Mapping[str, TrainingViews], recipe: Recipe, place: Surroundings
) -> Stored:
    """A teacher's embeddings of the views that `features_of` covers."""
    device = torch.device(place.device)
    return computed(
        "targets",
        tuple(views),
        _count(tuple(views), recipe),
        lambda name: views[name].__getitem__,
        lambda images, name: teacher.embed(images.to(device), name),
        place,
    )


def decoder_turns(names: tuple[str, ...], recipe: Recipe) -> Turns:
    """Batches of the phase that trains the decoder alone."""
    return _turns(names, recipe, recipe.decoder_batch, recipe.decoder_steps)


def joint_turns(names: tuple[str, ...], recipe: Recipe) -> Turns:
    """Batches of the phase that trains encoder parts too."""
    turns = _turns(names, recipe, recipe.joint_batch, recipe.joint_steps)
    if not recipe.size_stages:
        return turns
    batches = recipe.joint_steps * recipe.accumulate
    return replace(turns, sizes=SizeSchedule(recipe.size_stages, batches, recipe.seed))


def _turns(names: tuple[str, ...], recipe: Recipe, batch: int, steps: int) -> Turns:
    views = recipe.views
    if views is not None:
        # a short run makes no views that it does not touch
        views = min(views, max(1, -(-steps * recipe.accumulate // len(names)) * batch))
    return Turns(names, batch, views, recipe.seed)


def _count(names: tuple[str, ...], recipe: Recipe) -> int:
    """Views of a modality that are computed for both phases."""
    orders = (decoder_turns(names, recipe), joint_turns(names, recipe))
    return max(order.views or 0 for order in orders)


@torch.no_grad()
def computed(
    kind: str,
    names: Sequence[str],
    count: int,
    items: Callable[[str], Callable[[int], tuple[Tensor, Tensor]]],
    compute: Callable[[Tensor, str], Tensor],
    place: Surroundings,
) -> Stored:
    """What is computed of items of each modality only once, on disk; the first process does it.

    Args:
        kind: folder inside the work folder.
        names: of the modalities.
        count: items of each.
        items: input and label map of a number, by modality.
        compute: inputs `[B, ...]` and the modality's name to results `[B, ...]`.
        place: folder, device, processes.
    """
    results = {}
    for name in names:

        def run(inputs: Tensor, name: str = name) -> Tensor:
            with autocast(torch.device(place.device)):
                return compute(inputs, name)

        for turn in (place.processes.first, not place.processes.first):
            if turn:
                results[name] = compute_once(
                    place.work / kind / name,
                    count,
                    items(name),
                    run,
                    place.counting(f"{kind} {name}"),
                )
            place.processes.wait()
    return results
