"""`esp-medsam train --model desam`: a bundle of DeSAM from images with label maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esp_medsam_app.commands.runtime import Screen
from esp_medsam_app.commands.training_options import (
    find_cases,
    recipe_changes,
    surroundings,
)
from esp_medsam_app.errors import InputError

if TYPE_CHECKING:
    from esp_medsam_app.modalities import Modality
    from esp_medsam_app.networks import DeSam
    from esp_medsam_app.weights.desam_bundle import DeSamBundle

DEFAULT_ENCODER = "lite_medsam"


@dataclass(frozen=True)
class DeSamTraining:
    """The options of the command that mean something for DeSAM."""

    data: list[str]
    output: Path
    leave_out: list[str] | None
    work: Path
    name: str
    recipe: str | None
    changes: list[str] | None
    start: Path | None
    encoder: str | None
    seed: int
    device: str
    workers: int | None
    slices_gb: float
    features_gb: float


def train_desam_bundle(options: DeSamTraining) -> None:
    """Train decoders and write the bundle.

    Raises:
        EspMedSamError: cases, recipe, encoder or bundle that cannot be used.
    """
    from esp_medsam_app.dataset import prepare_caches
    from esp_medsam_app.training.desam_recipe import DEFAULT_RECIPE, DeSamRecipe
    from esp_medsam_app.training.desam_regions import smallest_regions
    from esp_medsam_app.training.desam_trainer import train_desam
    from esp_medsam_app.training.record import claim_work, describe
    from esp_medsam_app.weights.desam_bundle import load_desam, save_desam
    from esp_medsam_app.weights.desam_encoders import encoder_facts
    from esp_medsam_app.weights.desam_prompts import MaskRules

    modalities, folders, pairs = find_cases(options.data, options.leave_out)
    changes = recipe_changes(options.changes, options.seed)
    recipe = DeSamRecipe.read(options.recipe or DEFAULT_RECIPE, **changes)
    old = load_desam(options.start) if options.start is not None else None
    encoder = _encoder(options.encoder, old)
    if old is not None and recipe.prompts != old.description.prompts:
        raise InputError(
            f"the bundle was trained with {', '.join(old.description.prompts)}",
            path=old.path,
            remedy=f"Add --set 'prompts=[{', '.join(old.description.prompts)}]'",
        )
    facts = encoder_facts(encoder)
    rules = old.description.rules if old is not None else MaskRules()
    claim_work(options.work, recipe, pairs, old, encoder=encoder)
    with surroundings(options.work, options.device, options.workers, options.slices_gb) as place:
        caches = prepare_caches(pairs, modalities, tile=facts.tile, place=place)
        network = train_desam(
            _network(old, encoder, modalities, options.seed),
            caches,
            modalities,
            recipe,
            tile=facts.tile,
            place=place,
            feature_bytes=int(options.features_gb * 2**30),
        )
        regions = smallest_regions(caches, modalities, rules.smallest_region, tile=facts.tile)
    if not place.processes.first:
        return
    learned = {modality.name: modality for modality in modalities}
    said = old.description if old is not None else None
    runs: list[Any] = said.training.get("runs", []) if said is not None else []
    told = said.told_but_of(learned) if said is not None else {}
    bundle = save_desam(
        options.output,
        network,
        ((old.modalities if old is not None else {}) | learned).values(),
        name=options.name,
        encoder=encoder,
        prompts=recipe.prompts,
        rules=rules,
        training={"runs": [*runs, describe(recipe, pairs, folders, device=place.device)]},
        told=told | {"smallest_regions": told.get("smallest_regions", {}) | regions},
    )
    Screen().say(f"wrote {bundle.path}: {', '.join(bundle.modalities)}")


def _encoder(wanted: str | None, old: DeSamBundle | None) -> str:
    if old is None:
        return wanted or DEFAULT_ENCODER
    own = old.description.backbone.name
    if wanted not in (None, own):
        raise InputError(
            f"the bundle stands on {own}, not on {wanted}",
            path=old.path,
            remedy="Leave --encoder out, or --start",
        )
    return own


def _network(old: DeSamBundle | None, encoder: str, modalities: list[Modality], seed: int) -> DeSam:
    from esp_medsam_app.training.desam_starting import add_fresh_decoder, new_desam

    if old is None:
        return new_desam(encoder, modalities, seed=seed)
    network = old.load_network()
    for modality in modalities:
        if modality.name not in old.modalities:
            add_fresh_decoder(network, encoder, modality, seed=seed)
    return network
