"""Train modality after modality without end; called by scripts/train_in_background.sh.

WORK/best is the bundle of the best weights so far, WORK/ledger.csv says what every cycle gave, and
WORK/<modality>/progress.json what is running. A run that was killed goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from esp_medsam_app.benchmark.machine import Machine
from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.dataset.splits_on_disk import cases_of_split, judged_cases, read_left_out
from esp_medsam_app.evaluation.pairs import check_references
from esp_medsam_app.modalities import get_modality
from esp_medsam_app.training.cycles import ORDER, Cycles, Material
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.record import described_data
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import starter_bundle_path


class Training:
    """All that a training without end reads and keeps."""

    def __init__(self, data: Path, work: Path, recipe: str, steps: int | None, device: str) -> None:
        self.data = data
        self.recipe = recipe
        self.steps = steps
        self.device = device
        self.left_out = read_left_out(Path(__file__).parent / "left_out.txt")
        processor = Machine.this(torch.device(device)).processor
        self.cycles = Cycles(work, starter_bundle_path(), processor=processor)

    def cycle(self, name: str, number: int) -> None:
        """Run a cycle of a modality."""
        changes: dict[str, Any] = {"seed": 1000 + number}
        if self.steps is not None:
            changes["joint_steps"] = self.steps
        recipe = Recipe.read(self.recipe, **changes)
        place = Surroundings(
            self.cycles.cycle_folder(name),
            device=self.device,
            # one process a core: a second one for views would only take its time
            workers=0 if self.device == "cpu" else 8,
        )
        self.cycles.run(self._material(name, recipe), recipe, self.recipe, place)

    def _material(self, name: str, recipe: Recipe) -> Material:
        modality = get_modality(name)
        tile = recipe.largest_input(self.cycles.best.description.input_size)
        folders, pairs = cases_of_split(self.data, modality, "train", self.left_out)
        check_references(pairs, modality)
        _, val = cases_of_split(self.data, modality, "val", self.left_out)
        slices = self.cycles.work / "slices" / name
        return Material(
            modality,
            prepare_slices(slices / "train", pairs, modality, tile=tile),
            prepare_slices(slices / "val", judged_cases(val, modality), modality, tile=tile),
            described_data({name: pairs}, {name: folders})[name],
        )


def main() -> None:
    """Read the options and train until the process is stopped or the rounds are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="<modality>/<data set>/<split>/{images,labels}")
    parser.add_argument("work", type=Path, help="ledger, best bundle, checkpoints")
    parser.add_argument("--modalities", nargs="+", default=list(ORDER))
    parser.add_argument("--recipe", default="mixed_sizes")
    parser.add_argument("--steps", type=int, help="of a cycle, in place of the recipe's")
    parser.add_argument("--cycles", type=int, help="of each modality; without end by default")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    # several processes of one thread each do more than one of several threads: none waits for
    # another, least of all where other work takes the cores now and then
    torch.set_num_threads(1)
    training = Training(options.data, options.work, options.recipe, options.steps, options.device)
    while training.cycles.take_turn(options.modalities, options.cycles, training.cycle):
        pass


if __name__ == "__main__":
    main()
