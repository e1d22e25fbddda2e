"""A process that trains modality after modality until the time of the run is over."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.gpu_machine.costs import ready
from esp_medsam_app.gpu_machine.places import Packed, Places, read_manifest
from esp_medsam_app.gpu_machine.results import note, write_results
from esp_medsam_app.gpu_machine.sheets import read_sheets
from esp_medsam_app.inference.device import autocast_type
from esp_medsam_app.modalities import get_modality
from esp_medsam_app.training.arithmetic import keep_choice
from esp_medsam_app.training.campaign import SHARES, CycleResult
from esp_medsam_app.training.cycles import Cycles, Material
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sizes import SizeStage
from esp_medsam_app.training.surroundings import Speed, Surroundings
from esp_medsam_app.training.validation import SiteDice, site_means
from esp_medsam_app.weights.bundle import load_bundle

# Of a modality's time: what training may take at most, the rest is for judging.
TRAINING_SHARE = 0.8
# Steps are planned for less, as the estimate may be too high: a schedule should reach its end.
PLANNED_SHARE = 0.7
SHORTEST = 12.0
FEWEST_STEPS = 2
STEPS = "steps.json"


@dataclass(frozen=True)
class Plan:
    """What the processes of a run share.

    Attributes:
        root: of the working tree.
        output: folder of the results.
        names: of the modalities.
        most: cycles of each, those of earlier runs on this machine included.
        ends: time of `time.time` at which training ends.
        processes: that train at a time.
        workers: processes of each that cut views.
        device: torch device.
        processor: its name.
        speed: how kernels are started.
        costs: seconds of a view, by side, of one process that has the device for itself.
        recipe: name or file.
        batch: views of a step; the recipe's if none.
        views: of a modality at most; none for as many as the time allows.
        sizes: sides at which weights are judged, pixels.
    """

    root: str
    output: str
    names: list[str]
    most: int
    ends: float
    processes: int
    workers: int
    device: str
    processor: str
    speed: Speed
    costs: dict[int, float]
    recipe: str
    batch: int | None
    views: int | None
    sizes: list[int]

    def write(self, file: Path) -> None:
        """Write the plan for the processes."""
        with written_whole(file) as partial:
            partial.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Plan:
        """What `write` wrote."""
        said = json.loads(file.read_text(encoding="utf-8"))
        return cls(**said | {"costs": {int(k): v for k, v in said["costs"].items()}})


def planned_recipe(source: str, batch: int | None, **changes: Any) -> Recipe:
    """The recipe of a run, with the batch that was asked for."""
    if batch is not None:
        changes["joint_batch"] = batch
    return Recipe.read(source, **changes)


def cost_of(costs: dict[int, float], size: int) -> float:
    """Seconds of a view at any side: a constant and a part that grows with its pixels."""
    known = sorted(costs)
    if len(known) == 1:
        return costs[known[0]] * (size / known[0]) ** 2
    low, high = known[0], known[-1]
    slope = max(0.0, (costs[high] - costs[low]) / (high**2 - low**2))
    return max(costs[low] + slope * (size**2 - low**2), min(costs.values()) / 4)


def mean_cost(costs: dict[int, float], stages: tuple[SizeStage, ...], tile: int) -> float:
    """Mean seconds of a view over all stages of a recipe."""
    if not stages:
        return cost_of(costs, tile)
    total, before = 0.0, 0.0
    for stage in stages:
        mean = sum(cost_of(costs, size) for size in stage.sizes) / len(stage.sizes)
        total += (stage.until - before) * mean
        before = stage.until
    return total


class Worker:
    """Trains what no other process trains."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.places = Places(Path(plan.root))
        self.packed = read_manifest(self.places.carried)
        self.carried = load_bundle(self.places.carried / "bundle")
        self.cycles = Cycles(
            self.places.work,
            self.carried.path,
            processor=plan.processor,
            sizes=plan.sizes,
        )
        # real seconds over planned ones, of the last modality
        self.slowness = 1.0

    def work(self) -> None:
        """Train until all modalities have had their cycles or the time is over."""
        while self._left() > SHORTEST and self.cycles.take_turn(
            self.plan.names, self.plan.most, self._cycle
        ):
            pass

    def _left(self) -> float:
        return self.plan.ends - time.time()

    def _cycle(self, name: str, number: int) -> None:
        plan = self.plan
        start = time.monotonic()
        waiting = sum(self.cycles.done(one) < plan.most for one in plan.names)
        share = min(self._left(), self._left() * plan.processes / max(1, waiting))
        recipe = self._recipe(name, number, share)
        folder = self.cycles.cycle_folder(name)
        if autocast_type(torch.device(plan.device)) is not None and plan.device != "cpu":
            # not measured: other processes use the GPU at the same time
            keep_choice(folder, "bfloat16")
        steps: list[float] = []
        place = Surroundings(
            folder,
            device=plan.device,
            workers=plan.workers,
            speed=plan.speed,
            ends_at=start + share * TRAINING_SHARE,
            report=lambda task, done, total, losses: steps.append(time.monotonic()),
        )
        material = self._material(name)
        judged = _comparable(self.packed[name], material, plan.sizes)
        # of weights that are not here, nothing between them and the new ones can be tried
        known = name in self.cycles.best.modalities
        result = self.cycles.run(
            material,
            recipe,
            plan.recipe,
            place,
            judged=None if known else judged,
            shares=SHARES if known else (1.0,),
        )
        note(self.places.work, name, _figures(recipe, steps, start, share, result))
        if len(steps) > 1:
            planned = share * PLANNED_SHARE / recipe.joint_steps
            real = (steps[-1] - steps[0]) / (len(steps) - 1)
            self.slowness = max(0.1, self.slowness * real / planned)
        write_results(self.places.work, self.carried, self.packed, Path(plan.output))
        if plan.device != "cpu":
            # recordings of this modality hold memory until they are gone
            gc.collect()
            torch.cuda.empty_cache()

    def _recipe(self, name: str, number: int, share: float) -> Recipe:
        """The recipe of a cycle; of one that was stopped, as it was planned then."""
        plan = self.plan
        recipe = planned_recipe(plan.recipe, plan.batch, seed=5000 + number)
        file = self.cycles.cycle_folder(name) / STEPS
        if file.is_file():
            said = json.loads(file.read_text(encoding="utf-8"))
            return planned_recipe(plan.recipe, None, seed=5000 + number, **said)
        tile = self.carried.description.input_size
        seconds = recipe.joint_batch * mean_cost(plan.costs, recipe.size_stages, tile)
        seconds *= self.slowness * (plan.processes if plan.device != "cpu" else 1)
        steps = int(share * PLANNED_SHARE / seconds)
        if plan.views is not None:
            steps = min(steps, plan.views // recipe.joint_batch)
        said = {"joint_steps": max(FEWEST_STEPS, steps), "joint_batch": recipe.joint_batch}
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as partial:
            partial.write_text(json.dumps(said), encoding="utf-8")
        return planned_recipe(plan.recipe, None, seed=5000 + number, **said)

    def _material(self, name: str) -> Material:
        train, val = (
            read_sheets(
                self.places.carried / "slices" / f"{name}_{split}.zip",
                self.places.work / "slices" / f"{name}_{split}",
            )
            for split in ("train", "val")
        )
        return Material(get_modality(name), train, val, self.packed[name].data)


def _comparable(
    packed: Packed, material: Material, sizes: Sequence[int]
) -> dict[int, SiteDice] | None:
    """Dice of weights that stayed at home, if judged on the very cases and at the sides of here."""
    if packed.judged is None:
        return None
    here = {
        site: {material.val.case_names[case] for case in cases}
        for site, cases in material.val.sites.items()
    }
    judged = {int(size): sites for size, sites in packed.judged.items()}
    if set(judged) != set(sizes):
        return None
    for sites in judged.values():
        if {site: set(cases) for site, cases in sites.items()} != here:
            return None
    return judged


def _figures(
    recipe: Recipe, steps: list[float], start: float, share: float, result: CycleResult
) -> dict[str, Any]:
    """What a modality took and gave."""
    training = steps[-1] - steps[0] if len(steps) > 1 else 0.0
    per_step = recipe.joint_batch * recipe.accumulate
    chosen = result.chosen
    return {
        "seconds": round(time.monotonic() - start, 1),
        "share_seconds": round(share, 1),
        "planned_steps": recipe.joint_steps,
        "steps": len(steps),
        "training_seconds": round(training, 1),
        "views_per_second": round((len(steps) - 1) * per_step / training, 1) if training else None,
        "kept_share": chosen.share if chosen is not None else 0,
        "before": {size: site_means(dice) for size, dice in result.before.items()},
        "after": {
            str(candidate.share): {size: site_means(dice) for size, dice in candidate.dice.items()}
            for candidate in result.candidates
        },
    }


def run_worker(plan_file: Path) -> None:
    """Train by a plan; what a process of its own calls."""
    plan = Plan.read(plan_file)
    ready(torch.device(plan.device))
    Worker(plan).work()
