"""Dice of a network on cached slices: what a training is judged by while it runs.

It cuts, joins and decides as inference does, but reads the 8-bit slices of a cache and not the
images, so that it needs no image library. Published figures come from `esp-medsam evaluate`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.inference.fast_network import FastNetwork
from esp_medsam_app.inference.preprocessing import Tiling, decide
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.esp_medsam import resized
from esp_medsam_app.training.arithmetic import Arithmetic
from esp_medsam_app.training.slice_cache import SliceCache, evenly

# Slices of a site that are judged, at even distances; more cost time and tell little.
SLICES = 60
_BATCH, _GPU_BATCH = 4, 64

SiteDice = Mapping[str, Mapping[str, float]]


def dice_by_site(
    network: EspMedSam,
    cache: SliceCache,
    modality: Modality,
    *,
    size: int,
    arithmetic: Arithmetic,
    slices: int = SLICES,
) -> dict[str, dict[str, float]]:
    """Dice of every case, by site and by the case's name; mean over the modality's labels.

    A label that neither the network nor the reference has counts as 1. Of a volume, the chosen
    slices count together.

    Args:
        network: it has the modality; in evaluation mode, on the arithmetic's device.
        cache: slices of cases that were not trained on.
        modality: its tiles and labels.
        size: side of the network's input, pixels.
        arithmetic: how to compute.
        slices: of each site, at most.
    """
    fast = FastNetwork(network, arithmetic.dtype)
    found: dict[str, dict[str, float]] = {}
    for site, cases in cache.sites.items():
        numbers = [n for case in cases for part in cache.by_case[case] for n in part]
        numbers = evenly(sorted(numbers), slices)
        sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((len(modality.labels), 2)))
        for number, decided, truth in _segmented(fast, cache, modality, numbers, size, arithmetic):
            both = sums[cache.slices[number].case]
            values = torch.tensor(list(modality.labels.values()), device=decided.device)
            marked = decided.flatten() == values[:, None]
            wanted = truth.flatten() == values[:, None]
            either = marked.sum(1) + wanted.sum(1)
            both += torch.stack((2 * (marked & wanted).sum(1), either), dim=1).cpu().numpy()
        found[site] = {
            cache.case_names[case]: float(np.mean([a / b if b else 1.0 for a, b in both]))
            for case, both in sums.items()
        }
    return found


def site_means(dice: SiteDice) -> dict[str, float]:
    """Mean Dice of each site."""
    return {site: float(np.mean(list(cases.values()))) for site, cases in dice.items()}


@torch.inference_mode()
def _segmented(
    network: FastNetwork,
    cache: SliceCache,
    modality: Modality,
    numbers: Sequence[int],
    size: int,
    arithmetic: Arithmetic,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Slice number, label map of the network and reference, on the original slice's pixels.

    Slices are scaled, cut and joined on the device; tiles of several share a pass.
    """
    device = arithmetic.device
    batch = _BATCH if device.type == "cpu" else _GPU_BATCH
    for group in _groups(cache, modality, numbers, size, batch):
        read = {number: cache.read(number) for number, _ in group}
        cut = [
            torch.stack([tiling.cut(canvas, origin) for origin in tiling.origins]).clamp(0, 1)
            for number, tiling in group
            for canvas in tiling.scale(read[number][0].unsqueeze(0).to(device))
        ]
        logits = []
        for part in torch.cat(cut).split(batch):
            with arithmetic.context():
                embedding = network.embed(arithmetic.inputs(part), modality.name)
                masks, _ = network.decode(embedding, modality.name)
            logits.append(resized(masks, part).float())
        shares = torch.cat(logits).split([len(tiles) for tiles in cut])
        for (number, tiling), share in zip(group, shares, strict=True):
            labels = read[number][1].to(device)[None, None].float()
            truth = F.interpolate(labels, (tiling.height, tiling.width), mode="nearest-exact")
            yield number, decide(tiling.join(share)), truth[0, 0].to(torch.uint8)


def _groups(
    cache: SliceCache, modality: Modality, numbers: Sequence[int], size: int, batch: int
) -> Iterator[list[tuple[int, Tiling]]]:
    """Slices whose tiles fill a batch together; a slice of more tiles is alone."""
    group: list[tuple[int, Tiling]] = []
    tiles = 0
    for number in numbers:
        tiling = Tiling(*cache.extents(number), size, modality.tiles)
        if group and tiles + len(tiling.origins) > batch:
            yield group
            group, tiles = [], 0
        group.append((number, tiling))
        tiles += len(tiling.origins)
    if group:
        yield group
