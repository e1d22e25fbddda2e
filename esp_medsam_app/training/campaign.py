"""Training without end: cycles of one modality, each judged on validation cases of several sites.

A cycle trains a modality's controller and queries for some hundred steps from where the last one
ended, then compares the result with the best weights so far. Weights between the two are tried as
well: what a cycle gains on its own sites is largely kept, and what it loses on others largely not
lost (arXiv 2109.01903). Old and new weights are compared at the input size at which each serves
best. `acceptance.compare` decides, on validation cases alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.acceptance import Verdict, compare
from esp_medsam_app.training.arithmetic import choose_arithmetic
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.trainer import Learners, train
from esp_medsam_app.training.validation import SiteDice, dice_by_site, site_means
from esp_medsam_app.weights.bundle import mix_modality, round_modality

# Shares of the way from the best weights to the new ones that are tried.
SHARES = (0.5, 1.0)
OWN_PARTS = Learners(shared=False)


@dataclass(frozen=True)
class Candidate:
    """Weights that a cycle offers.

    Attributes:
        share: of the way from the best weights to what the cycle ended with.
        network: has them in the modality, rounded as a file stores them.
        dice: by input size, then site and case.
        size: side of the input at which they would be served, pixels.
        verdict: against the best weights, both at the size at which they would be served.
    """

    share: float
    network: EspMedSam
    dice: dict[int, SiteDice]
    size: int
    verdict: Verdict


@dataclass(frozen=True)
class CycleResult:
    """What a cycle gave.

    Attributes:
        trained: the network as the cycle ended.
        before: Dice of the best weights, by input size.
        candidates: what was tried, in the order of the shares.
        chosen: the candidate that replaces the best weights, if any does.
    """

    trained: EspMedSam
    before: dict[int, SiteDice]
    candidates: list[Candidate]
    chosen: Candidate | None


def run_cycle(
    best: EspMedSam,
    current: EspMedSam,
    modality: Modality,
    train_cache: SliceCache,
    val_cache: SliceCache,
    recipe: Recipe,
    *,
    tile: int,
    sizes: Sequence[int],
    place: Surroundings,
    before: dict[int, SiteDice] | None = None,
    shares: Sequence[float] = SHARES,
) -> CycleResult:
    """Train a modality for one cycle and judge the result.

    A run that was stopped goes on from the place's work folder.

    Args:
        best: the network with the best weights of the modality so far. It stays as it is.
        current: where the cycle starts; it may be the same network. It stays as it is.
        modality: what to train.
        train_cache: its training slices.
        val_cache: slices to judge it on; none of their cases is trained on.
        recipe: all numbers of the training.
        tile: side of the bundle's input, pixels.
        sizes: sides of the input to judge at, pixels.
        place: folder, device and processes.
        before: what `judge` gave of the best weights, where an earlier cycle asked already.
        shares: of the way from the best weights to the new ones that are tried.
    """
    trained = train(
        copy.deepcopy(current),
        {modality.name: train_cache},
        [modality],
        recipe,
        tile=tile,
        place=place,
        learners=OWN_PARTS,
    )
    if before is None:
        before = judge(best, val_cache, modality, sizes=sizes, place=place)
    candidates = []
    for share in shares:
        network = copy.deepcopy(best)
        mix_modality(network, trained, modality.name, share)
        round_modality(network, modality.name)
        dice = judge(network, val_cache, modality, sizes=sizes, place=place)
        size = served_size(dice)
        verdict = compare(before[served_size(before)], dice[size])
        candidates.append(Candidate(share, network, dice, size, verdict))
    better = [candidate for candidate in candidates if candidate.verdict.better]
    chosen = max(better, key=lambda candidate: candidate.verdict.gain, default=None)
    return CycleResult(trained, before, candidates, chosen)


def judge(
    network: EspMedSam,
    cache: SliceCache,
    modality: Modality,
    *,
    sizes: Sequence[int],
    place: Surroundings,
) -> dict[int, SiteDice]:
    """Dice on validation cases at several input sizes."""
    arithmetic = choose_arithmetic(network, modality.name, place)
    network.eval().requires_grad_(False).to(arithmetic.device)
    found: dict[int, SiteDice] = {
        size: dice_by_site(network, cache, modality, size=size, arithmetic=arithmetic)
        for size in sizes
    }
    network.cpu().to(memory_format=torch.contiguous_format)
    return found


def served_size(dice: Mapping[int, SiteDice]) -> int:
    """The input size at which weights serve best: the largest mean Dice over sites, pixels.

    Args:
        dice: of validation cases, by input size, then site and case.
    """
    return max(dice, key=lambda size: float(np.mean(list(site_means(dice[size]).values()))))
