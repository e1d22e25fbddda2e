"""How good a network is on held-out cases, on the very path that serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from esp_medsam_app.evaluation.metrics import mean_dice
from esp_medsam_app.evaluation.pairs import CasePair, read_pair
from esp_medsam_app.inference.device import autocast
from esp_medsam_app.inference.slicewise import batch_size_for, segment_slicewise
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import DeSam, EspMedSam

Judged = Callable[[int, int], None]
Masks = Callable[[EspMedSam | DeSam, Tensor], Tensor]


def judge(
    network: EspMedSam | DeSam,
    modality: Modality,
    pairs: Sequence[CasePair],
    *,
    tile: int,
    device: torch.device,
    on_case: Judged = lambda done, total: None,
    masks: Masks | None = None,
) -> dict[str, float]:
    """Dice of whole cases by name, the mean of the labels; 1 for a label that is absent from both.

    Args:
        network: on `device`.
        modality: its labels and rules.
        pairs: the cases.
        tile: side of the network's input, pixels.
        device: where to compute.
        on_case: called with cases done and cases in all.
        masks: network and tiles on the device to mask logits; ESP-MedSAM's way by default.

    Raises:
        InputError: a case that cannot be used.
        OutOfMemoryError: not even one tile at a time fits into memory.
    """

    def run(tiles: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device):
            if masks is not None:
                return masks(network, tiles.to(device)).float()
            return network(tiles.to(device), modality.name).mask_logits.float()

    found = {}
    for number, pair in enumerate(pairs):
        image, reference = read_pair(pair, modality)
        labels = segment_slicewise(
            image,
            modality,
            run,
            tile=tile,
            device=device,
            batch_size=batch_size_for(device),
        )
        found[pair.name] = mean_dice(reference.voxels, labels, modality.labels.values())
        on_case(number + 1, len(pairs))
    return found
