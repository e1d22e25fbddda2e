"""Annotation replayed: how good a model gets with so many cases, chosen by one strategy or another.

The labels are there already and are uncovered as an annotator would have made them. Every model is
trained from the same start with the same number of steps, and judged on cases of another split.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esp_medsam_app.active_learning.strategies import STRATEGIES, Candidate
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.inference.assessment import Assessment, assess_slicewise
from esp_medsam_app.inference.device import autocast
from esp_medsam_app.inference.slicewise import batch_size_for
from esp_medsam_app.learning.judging import judge
from esp_medsam_app.learning.learner import LearnerLoss, ModalityLearner
from esp_medsam_app.learning.material import Material, training_material
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import Segmentation
from esp_medsam_app.training.optimisation import Checkpoint, Phase, optimise
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sources import Batch, CachedFeatures, Turns
from esp_medsam_app.training.starting import add_fresh_modality
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import Bundle

# of a volume, so many slices decide how unsure the model is
_ASSESSED_SLICES = 8


@dataclass(frozen=True)
class Replay:
    """Annotation of one modality, replayed.

    Attributes:
        bundle: its decoder and backbone are used; the modality starts fresh, as a new one does.
        modality: what is annotated.
        pool: cases to annotate.
        test: cases to judge by, of other patients.
        recipe: `joint_steps` and `joint_batch` of every training; `views` of the whole pool.
        place: folder, device, listeners. What was computed before is read from the folder.
    """

    bundle: Bundle
    modality: Modality
    pool: Sequence[CasePair]
    test: Sequence[CasePair]
    recipe: Recipe
    place: Surroundings

    def run(
        self, strategy: str, seed: int, budgets: Sequence[int]
    ) -> dict[int, tuple[float, list[str]]]:
        """Mean Dice on the test cases, and the cases annotated until then, by budget.

        The first budget's cases are drawn by chance, the same for every strategy of a seed.

        Args:
            strategy: a name from `STRATEGIES`.
            seed: of the first cases, of chance in the strategy and of the trainings.
            budgets: numbers of annotated cases, ascending.
        """
        candidates = [Candidate(case.name) for case in self.pool]
        chosen = STRATEGIES["random"](candidates, seed=seed)[: budgets[0]]
        found = {}
        for turn, budget in enumerate(budgets):
            if turn:
                chosen = [*chosen, *self._next(strategy, seed, chosen, budget - len(chosen))]
            found[budget] = (self._dice(seed, chosen), chosen)
        return found

    def everything(self, seed: int) -> float:
        """Mean Dice on the test cases with the whole pool annotated."""
        return self._dice(seed, [case.name for case in self.pool])

    def _next(self, strategy: str, seed: int, chosen: Sequence[str], count: int) -> list[str]:
        assessed: Mapping[str, Assessment] = {}
        if strategy not in ("random", "first"):
            assessed = self._assessed(seed, chosen)
        candidates = [
            Candidate(
                case.name,
                assessed[case.name].uncertainty if assessed else None,
                assessed[case.name].embedding if assessed else None,
            )
            for case in self.pool
            if case.name not in chosen
        ]
        known = [assessed[name].embedding for name in chosen] if assessed else []
        return STRATEGIES[strategy](candidates, known, seed=seed, count=count)[:count]

    def _assessed(self, seed: int, chosen: Sequence[str]) -> dict[str, Assessment]:
        learner = self._trained(seed, chosen)

        def look(tiles: Tensor) -> Segmentation:
            with torch.inference_mode(), autocast(learner.device):
                seen: Segmentation = learner.network(tiles.to(learner.device), self.modality.name)
                return seen

        report = self.place.counting("assessing")
        found = {}
        for number, case in enumerate(self.pool):
            found[case.name] = assess_slicewise(
                read_image(case.image),
                self.modality,
                look,
                tile=self._tile,
                device=learner.device,
                batch_size=batch_size_for(learner.device),
                most_slices=_ASSESSED_SLICES,
            )
            report(number + 1, len(self.pool))
        return found

    def _dice(self, seed: int, chosen: Sequence[str]) -> float:
        file = self._folder(seed, chosen) / "dice.json"
        if not file.exists():
            learner = self._trained(seed, chosen)
            scores = judge(
                learner.network,
                self.modality,
                self.test,
                tile=self._tile,
                device=learner.device,
                on_case=self.place.counting("judging"),
            )
            with written_whole(file) as partial:
                partial.write_text(json.dumps(scores, indent=1), encoding="utf-8")
        scores = json.loads(file.read_text(encoding="utf-8"))
        return float(sum(scores.values()) / len(scores))

    def _trained(self, seed: int, chosen: Sequence[str]) -> ModalityLearner:
        """A model trained on some of the pool; read from the folder if it was trained before."""
        learner = self._learner(seed)
        material = self._material(learner)
        names = [case.name for case in self.pool]
        places = {names.index(name) for name in chosen}
        views = torch.tensor([i for i, case in enumerate(material.cases) if case in places])
        loss = LearnerLoss(self.recipe)

        def losses(batch: Batch) -> Mapping[str, Tensor]:
            total = loss(learner(batch.inputs), batch.labels.to(learner.device))
            return {"total": total}

        name = self.modality.name
        order = Turns((name,), self.recipe.joint_batch, len(views), seed)
        source = CachedFeatures({name: (material.features[views], material.labels[views])}, order)
        folder = self._folder(seed, chosen)
        folder.mkdir(parents=True, exist_ok=True)
        groups = learner.groups(self.recipe)
        phase = Phase("joint", self.recipe.joint_steps, groups, source, losses)
        checkpoint = Checkpoint(folder / "checkpoint.pt", learner, lambda _: True)
        place = Surroundings(folder, device=self.place.device, report=self.place.report)
        optimise(phase, self.recipe, checkpoint, place)
        return learner

    def _learner(self, seed: int) -> ModalityLearner:
        name = self.modality.name
        network = self.bundle.load_network([])
        add_fresh_modality(network, self.bundle.backbone, self.modality, seed=seed)
        return ModalityLearner(
            network, name, self.recipe.cached_stage, torch.device(self.place.device)
        )

    def _material(self, learner: ModalityLearner) -> Material:
        # a view without the structure may be of any case: of those that have no label yet too
        recipe = self.recipe.model_copy(
            update={"absent": 0.0, "decoder_steps": 0, "joint_steps": self.recipe.views}
        )
        folder = training_material(
            learner.network, self.modality, self.pool, recipe, tile=self._tile, place=self.place
        )
        return Material.read(folder)

    def _folder(self, seed: int, chosen: Sequence[str]) -> Path:
        # strategies that chose the same cases share what was trained on them
        cases = zlib.crc32("\n".join(sorted(chosen)).encode())
        return self.place.work / "trainings" / f"{seed}_{len(chosen)}_{cases:08x}"

    @property
    def _tile(self) -> int:
        return self.bundle.usual_size(self.modality.name)


def needed_for(wanted: float, curve: Mapping[int, float]) -> float | None:
    """How many annotated cases a Dice takes, between budgets by a straight line.

    Args:
        wanted: the Dice.
        curve: Dice by budget.

    Returns:
        The number; none where the curve does not reach it.
    """
    before: tuple[int, float] | None = None
    for budget, dice in sorted(curve.items()):
        if dice >= wanted:
            if before is None:
                return float(budget)
            share = (wanted - before[1]) / (dice - before[1])
            return before[0] + share * (budget - before[0])
        before = (budget, dice)
    return None
