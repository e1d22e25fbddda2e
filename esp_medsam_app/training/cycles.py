"""Cycles of many modalities in one work folder, which several processes share.

```
best/                               bundle of the best weights so far
ledger.csv                          what each cycle gave, a row a size and site
<modality>/current.safetensors      where the next cycle starts
<modality>/judged.json              Dice of the best weights
<modality>/done.json                cycles that are done
<modality>/progress.json            what is running
<modality>/cycle_<n>/               checkpoint of a cycle that runs or was stopped
```
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training import cycle_ledger
from esp_medsam_app.training.campaign import SHARES, CycleResult, run_cycle
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.record import describe_run
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.starting import network_of
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.validation import SiteDice
from esp_medsam_app.weights.bundle import DESCRIPTION, Bundle, load_bundle, save_modality
from esp_medsam_app.weights.merging import replace_modality

# the weakest first
ORDER = (
    "colonoscopy", "ct_liver", "breast_ultrasound", "mr_left_atrium", "ct_abdomen", "mr_abdomen",
    "mr_left_ventricle", "fundus_vessels", "microscopy_nuclei", "xray_chest", "dermoscopy",
    "mr_hippocampus",
)  # fmt: skip
# sides of the input at which weights are judged
SIZES = (128, 160, 192, 256)
PROGRESS_SECONDS = 10.0

LEDGER, BEST = "ledger.csv", "best"


@dataclass(frozen=True)
class Material:
    """What a cycle learns from and is judged on.

    Attributes:
        modality: whose cases.
        train: slices to learn from.
        val: slices of other cases.
        data: of `train`, as `record.described_data` gives it.
    """

    modality: Modality
    train: SliceCache
    val: SliceCache
    data: Mapping[str, Any]


class Cycles:
    """The cycles of a work folder.

    Args:
        work: the folder.
        start: bundle whose weights are the best at first; none if the folder has its own.
        processor: that computes, for the ledger.
        sizes: sides of the input at which weights are judged, pixels.
    """

    def __init__(
        self,
        work: Path,
        start: Path | None,
        *,
        processor: str,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        self.work = work
        self.processor = processor
        self.sizes = tuple(sizes)
        self._reported = 0.0
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "best.lock"):
            if start is not None and not (work / BEST / DESCRIPTION).is_file():
                shutil.copytree(start, work / BEST, dirs_exist_ok=True)

    @property
    def best(self) -> Bundle:
        """The bundle of the best weights so far."""
        return load_bundle(self.work / BEST)

    def done(self, name: str) -> int:
        """Cycles of a modality that are done."""
        file = self.work / name / "done.json"
        if not file.is_file():
            return 0
        return int(json.loads(file.read_text(encoding="utf-8"))["cycles"])

    def take_turn(
        self, names: Sequence[str], most: int | None, cycle: Callable[[str, int], None]
    ) -> bool:
        """Run a cycle of the modality that had the fewest and that no other process trains.

        Args:
            names: of the modalities; of equal ones the first is taken.
            most: cycles of a modality.
            cycle: called with the modality's name and the number of the cycle.

        Returns:
            False if every modality had its cycles, or others train all that are left.
        """
        for name in sorted(names, key=self.done):
            folder = self.work / name
            folder.mkdir(exist_ok=True)
            if most is not None and self.done(name) >= most:
                continue
            try:
                with FileLock(folder / "lock", timeout=0):
                    # another process may have done it since
                    if most is None or self.done(name) < most:
                        cycle(name, self.done(name))
                        return True
            except Timeout:
                continue
        return False

    def run(
        self,
        material: Material,
        recipe: Recipe,
        recipe_name: str,
        place: Surroundings,
        *,
        judged: dict[int, SiteDice] | None = None,
        shares: Sequence[float] = SHARES,
    ) -> CycleResult:
        """Run the next cycle of a modality, or go on with the one that was stopped.

        Args:
            material: what it learns from.
            recipe: all numbers; those of the call that was stopped, if one was.
            recipe_name: for the ledger.
            place: device, processes and whom to tell. Its folder is this one's.
            judged: Dice of weights that the result has to surpass and that are not at hand; else
                those of the best weights count.
            shares: of the way from the best weights to the new ones that are tried.
        """
        modality = material.modality
        name, number = modality.name, self.done(modality.name)
        folder = self.work / name
        bundle = self.best
        best = network_of(bundle, modality)
        current = network_of(bundle, modality, folder / "current.safetensors")
        told, reached = place.report, 0

        def report(task: str, done: int, total: int, losses: Mapping[str, float]) -> None:
            nonlocal reached
            reached = done
            self._report(name, number, task, done, total, losses)
            told(task, done, total, losses)

        place = replace(place, work=self.cycle_folder(name), report=report)
        place.work.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        result = run_cycle(
            best,
            current,
            modality,
            material.train,
            material.val,
            recipe,
            tile=bundle.description.input_size,
            sizes=self.sizes,
            place=place,
            before=judged or self._judged(bundle, modality),
            shares=shares,
        )
        seconds = time.monotonic() - start
        if reached:
            # fewer than planned where the time was over
            recipe = recipe.model_copy(update={"joint_steps": reached})
        entry = cycle_ledger.Entry(
            now(), name, number, recipe_name, recipe, seconds, self.processor, result
        )
        with FileLock(self.work / "ledger.lock"):
            cycle_ledger.append(self.work / LEDGER, entry)
        if result.chosen is not None:
            run = describe_run(recipe, {name: dict(material.data)}, device=place.device)
            size = result.chosen.size
            run |= {"shared": False, "share": result.chosen.share, "cycle": number, "size": size}
            with FileLock(self.work / "best.lock"):
                # other processes may have written other modalities meanwhile
                bundle = replace_modality(
                    self.best, result.chosen.network, modality, run, size=size
                )
        now_best = result.before if result.chosen is None else result.chosen.dice
        weights = bundle.description.files.get(bundle.modality_file(name))
        with written_whole(folder / "judged.json") as partial:
            partial.write_text(json.dumps({"weights": weights, "dice": now_best}), encoding="utf-8")
        with written_whole(folder / "current.safetensors") as partial:
            save_modality(partial, result.trained, name)
        with written_whole(folder / "done.json") as partial:
            partial.write_text(json.dumps({"cycles": number + 1}), encoding="utf-8")
        shutil.rmtree(place.work)
        return result

    def cycle_folder(self, name: str) -> Path:
        """Where the checkpoint of a modality's next cycle lies."""
        return self.work / name / f"cycle_{self.done(name)}"

    def _judged(self, bundle: Bundle, modality: Modality) -> dict[int, SiteDice] | None:
        weights = bundle.description.files.get(bundle.modality_file(modality.name))
        known = read_judged(self.work / modality.name / "judged.json", weights)
        return known if known is not None and set(known) == set(self.sizes) else None

    def _report(
        self,
        name: str,
        number: int,
        task: str,
        done: int,
        total: int,
        losses: Mapping[str, float],
    ) -> None:
        time_now = time.monotonic()
        if time_now - self._reported < PROGRESS_SECONDS and done < total:
            return
        self._reported = time_now
        said = {"modality": name, "cycle": number, "task": task, "done": done, "total": total}
        with written_whole(self.work / name / "progress.json") as partial:
            partial.write_text(
                json.dumps(said | {"utc": now(), "mask_loss": losses.get("mask")}),
                encoding="utf-8",
            )


def read_judged(file: Path, weights: str | None) -> dict[int, SiteDice] | None:
    """Dice by size, site and case of a modality's best weights, where these were judged.

    Args:
        file: `judged.json` of a modality.
        weights: SHA-256 of the weights that are asked about; none for a modality that is new.
    """
    if not file.is_file():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    if known["weights"] != weights:
        return None
    return {int(size): dice for size, dice in known["dice"].items()}


def now() -> str:
    """The time, for people and files."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
