"""Run by torchrun: train the small problem and save what comes out. Arguments: data, work, output.

Not a test by itself; see test_processes.py.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from esp_medsam_app.dataset import prepare_caches
from esp_medsam_app.evaluation.pairs import find_pairs
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.processes import joined
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.trainer import train
from esp_medsam_app.weights.backbones import LITE_MEDSAM

TILE = 32
RECIPE = Recipe(
    views=8, cached_stage=1, decoder_steps=2, decoder_batch=2, joint_steps=3, joint_batch=2,
    accumulate=2,
)  # fmt: skip


def run(data: Path, work: Path) -> dict[str, torch.Tensor]:
    """What the run gives; two modalities, so that each process has another one in a step."""
    torch.set_num_threads(1)
    names = ("disc", "same")
    modalities = [
        Modality(name=name, title="", description="", dimension=2, labels={"disc": 1})
        for name in names
    ]
    backbone = replace(LITE_MEDSAM, input_size=TILE)
    with joined() as processes:
        place = Surroundings(work, processes=processes)
        pairs = {name: find_pairs([data]) for name in names}
        network = train(
            new_network(backbone, modalities),
            prepare_caches(pairs, modalities, tile=TILE, place=place),
            modalities,
            RECIPE,
            tile=TILE,
            place=place,
        )
    return network.state_dict() if processes.first else {}


if __name__ == "__main__":
    folder, work_folder, output = map(Path, sys.argv[1:])
    state = run(folder, work_folder)
    if state:
        torch.save(state, output)
