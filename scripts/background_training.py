"""Train modality after modality without end; called by scripts/train_in_background.sh.

WORK/best is the bundle of the best weights so far, WORK/ledger.csv says what every cycle gave, and
WORK/<modality>/progress.json
what is running. A run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from esp_medsam_app.benchmark.machine import Machine
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.evaluation.pairs import CasePair, check_references, find_pairs, without
from esp_medsam_app.modalities import Modality, get_modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.campaign import CycleResult, run_cycle
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.record import describe
from esp_medsam_app.training.slice_cache import SliceCache
from esp_medsam_app.training.starting import add_fresh_modality
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.validation import SiteDice, site_means
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import Bundle, load_owned, save_modality, starter_bundle_path
from esp_medsam_app.weights.merging import replace_modality

# the weakest first
ORDER = (
    "colonoscopy", "ct_liver", "breast_ultrasound", "mr_left_atrium", "ct_abdomen", "mr_abdomen",
    "mr_left_ventricle", "fundus_vessels", "microscopy_nuclei", "mr_prostate", "xray_chest",
    "dermoscopy", "mr_hippocampus",
)  # fmt: skip
COLUMNS = (
    "utc", "modality", "cycle", "recipe", "steps", "views", "seconds", "processor", "size", "site",
    "cases", "before", "half", "whole", "gain", "error", "kept_share",
)  # fmt: skip
# sides of the input at which weights are judged
SIZES = (128, 256)
# cases of a volume data set that are judged
VAL_VOLUMES = 8
PROGRESS_SECONDS = 10.0


class Training:
    """All that a training without end keeps in its work folder."""

    def __init__(self, data: Path, work: Path, recipe: str, steps: int | None, device: str) -> None:
        self.data = data
        self.work = work
        self.recipe = recipe
        self.steps = steps
        self.device = device
        self.processor = Machine.this(torch.device(device)).processor
        self.reported = 0.0
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "best" / "bundle.json").is_file():
            shutil.copytree(starter_bundle_path(), work / "best", dirs_exist_ok=True)

    @property
    def best(self) -> Bundle:
        """The bundle of the best weights so far."""
        return load_bundle(self.work / "best")

    def pairs(self, modality: Modality, split: str) -> tuple[list[Path], list[CasePair]]:
        """Folders and cases of a split; cases that stand in another split too are left out."""
        folders = sorted(
            path.parent for path in (self.data / modality.name).glob(f"*/{split}/images")
        )
        found = find_pairs(folders)
        rows = (Path(__file__).parent / "left_out.txt").read_text(encoding="utf-8").splitlines()
        parted = [row.split() for row in rows if row and not row.startswith("#")]
        names = [case for name, part, case in parted if (name, part) == (modality.name, split)]
        return folders, without(found, names) if names else found

    def next_cycle(self, modalities: list[str], most: int | None) -> bool:
        """Run a cycle of the modality that had the fewest and that no other process trains.

        Args:
            modalities: names; of equal ones the first is taken.
            most: cycles of a modality.

        Returns:
            False if every modality had its cycles, or others train all that are left.
        """
        for name in sorted(modalities, key=lambda name: self._next(self.work / name)):
            folder = self.work / name
            folder.mkdir(exist_ok=True)
            if most is not None and self._next(folder) >= most:
                continue
            try:
                with FileLock(folder / "lock", timeout=0):
                    self.cycle(name)
                    return True
            except Timeout:
                continue
        return False

    def cycle(self, name: str) -> None:
        """Run the next cycle of a modality, or go on with the one that was stopped."""
        modality = get_modality(name)
        folder = self.work / name
        number = self._next(folder)
        changes: dict[str, Any] = {"seed": 1000 + number}
        if self.steps is not None:
            changes["joint_steps"] = self.steps
        recipe = Recipe.read(self.recipe, **changes)
        bundle = self.best
        tile = bundle.description.input_size
        largest = recipe.largest_input(tile)
        folders, pairs = self.pairs(modality, "train")
        check_references(pairs, modality)
        train_cache = self._cache(modality, "train", pairs, largest)
        _, val_pairs = self.pairs(modality, "val")
        val_cache = self._cache(modality, "val", _few_volumes(val_pairs, modality), largest)
        best = self._network(bundle, modality)
        current = self._network(bundle, modality, folder / "current.safetensors")
        place = Surroundings(
            folder / f"cycle_{number}",
            device=self.device,
            # one process a core: a second one for views would only take its time
            workers=0 if self.device == "cpu" else 8,
            report=lambda task, done, total, losses: self._report(
                name, number, task, done, total, losses
            ),
        )
        place.work.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        judged = folder / "judged.json"
        weights = bundle.description.files.get(bundle.modality_file(name))
        result = run_cycle(
            best,
            current,
            modality,
            train_cache,
            val_cache,
            recipe,
            tile=tile,
            sizes=SIZES,
            place=place,
            before=_judged(judged, weights),
        )
        self._write_rows(name, number, recipe, time.monotonic() - start, result)
        if result.chosen is not None:
            run = describe(recipe, {name: pairs}, {name: folders}, device=self.device)
            run |= {"shared": False, "share": result.chosen.share, "cycle": number}
            with FileLock(self.work / "best.lock"):
                # other processes may have written other modalities meanwhile
                bundle = replace_modality(self.best, result.chosen.network, modality, run)
        now_best = result.before if result.chosen is None else result.chosen.dice
        weights = bundle.description.files.get(bundle.modality_file(name))
        with written_whole(judged) as partial:
            partial.write_text(json.dumps({"weights": weights, "dice": now_best}), encoding="utf-8")
        with written_whole(folder / "current.safetensors") as partial:
            save_modality(partial, result.trained, name)
        (folder / "done.json").write_text(json.dumps({"cycles": number + 1}), encoding="utf-8")
        shutil.rmtree(place.work)

    def _next(self, folder: Path) -> int:
        done = folder / "done.json"
        if not done.is_file():
            return 0
        return int(json.loads(done.read_text(encoding="utf-8"))["cycles"])

    def _cache(
        self, modality: Modality, split: str, pairs: list[CasePair], tile: int
    ) -> SliceCache:
        return prepare_slices(
            self.work / "slices" / modality.name / split, pairs, modality, tile=tile
        )

    def _network(
        self, bundle: Bundle, modality: Modality, weights: Path | None = None
    ) -> EspMedSam:
        known = modality.name in bundle.modalities
        network = bundle.load_network([modality.name] if known else [])
        if not known:
            add_fresh_modality(network, bundle.backbone, modality)
        if weights is not None and weights.is_file():
            load_owned(network, modality, weights)
        return network.eval()

    def _report(
        self,
        name: str,
        number: int,
        task: str,
        done: int,
        total: int,
        losses: Mapping[str, float],
    ) -> None:
        now = time.monotonic()
        if now - self.reported < PROGRESS_SECONDS and done < total:
            return
        self.reported = now
        said = {"modality": name, "cycle": number, "task": task, "done": done, "total": total}
        with written_whole(self.work / name / "progress.json") as partial:
            partial.write_text(
                json.dumps(said | {"utc": _now(), "mask_loss": losses.get("mask")}),
                encoding="utf-8",
            )

    def _write_rows(
        self, name: str, number: int, recipe: Recipe, seconds: float, result: CycleResult
    ) -> None:
        """One row a size and site; appended, so that nothing of earlier cycles is lost."""
        file = self.work / "ledger.csv"
        fresh = not file.is_file()
        tried = max(result.candidates, key=lambda candidate: candidate.verdict.gain)
        with file.open("a", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            if fresh:
                writer.writerow(COLUMNS)
            for size, sites in result.before.items():
                for site, before in site_means(sites).items():
                    halves = [site_means(c.dice[size])[site] for c in result.candidates]
                    writer.writerow(
                        [
                            _now(), name, number, self.recipe, recipe.joint_steps,
                            recipe.joint_steps * recipe.joint_batch * recipe.accumulate,
                            round(seconds), self.processor, size, site, len(sites[site]),
                            *(f"{value:.4f}" for value in (before, *halves)),
                            f"{tried.verdict.gain:.4f}", f"{tried.verdict.error:.4f}",
                            result.chosen.share if result.chosen is not None else 0,
                        ]
                    )  # fmt: skip


def _judged(file: Path, weights: str | None) -> dict[int, SiteDice] | None:
    """Dice of the best weights, where they were judged already."""
    if not file.is_file():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    if known["weights"] != weights:
        return None
    return {int(size): dice for size, dice in known["dice"].items()}


def _few_volumes(pairs: list[CasePair], modality: Modality) -> list[CasePair]:
    """All pictures and single slices; of volumes the first of each data set."""
    kept: list[CasePair] = []
    seen: dict[Path, int] = {}
    for pair in pairs:
        if modality.dimension == 3 and pair.image.name.endswith((".nii.gz", ".nii", ".nrrd")):
            folder = pair.image.parent
            seen[folder] = seen.get(folder, 0) + 1
            if seen[folder] > VAL_VOLUMES:
                continue
        kept.append(pair)
    return kept


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


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
    while training.next_cycle(options.modalities, options.cycles):
        pass


if __name__ == "__main__":
    main()
