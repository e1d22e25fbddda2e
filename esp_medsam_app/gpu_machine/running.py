"""Run: unpack, measure, train all modalities in the time there is, measure inference."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from esp_medsam_app.benchmark.machine import Machine
from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.costs import FAILED, fastest, seconds_per_view
from esp_medsam_app.gpu_machine.places import Packed, Places, read_manifest
from esp_medsam_app.gpu_machine.results import note, write_results
from esp_medsam_app.gpu_machine.sheets import read_sheets
from esp_medsam_app.gpu_machine.worker import Plan, planned_recipe
from esp_medsam_app.training.cycles import BEST, Cycles
from esp_medsam_app.training.surroundings import Speed
from esp_medsam_app.weights.bundle import load_bundle

# A command there ends at ten minutes.
LONGEST_MINUTES = 9.0
# of the time: what is kept for measuring inference at the end, and for the trial at the start
_INFERENCE_SECONDS, _TRIAL_SECONDS = 60.0, 90.0
_COMPILE_SECONDS = 240.0
# from the end of training to that of the last process, judging included
_GRACE = 20.0
GPU_PROCESSES = 3
# where nothing could be measured
_USUAL_COST = {128: 1 / 800, 256: 1 / 250}

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        minutes: of the whole call.
        device: torch device.
        output: folder of the results.
        recipe: name or file.
        speeds: ways to start kernels that are tried beside `plain`.
        processes: that train at a time; by the device if none.
        batch: views of a step; the recipe's if none.
        views: of each modality at most.
        sizes: sides at which weights are judged, pixels.
        modalities: names; all that are packed if none.
        inference: measure it at the end.
    """

    minutes: float
    device: str
    output: Path
    recipe: str
    speeds: Sequence[Speed]
    processes: int | None
    batch: int | None
    views: int | None
    sizes: Sequence[int]
    modalities: Sequence[str]
    inference: bool


def run(root: Path, options: Options, tell: Tell) -> None:
    """Train what is packed, for as long as the call may take.

    Args:
        root: of the working tree.
        options: how to run.
        tell: called with what is being done.

    Raises:
        InputError: nothing is packed, a modality that is not, or none was trained to its end.
    """
    start = time.time()
    if not 0 < options.minutes <= LONGEST_MINUTES:
        raise InputError(
            f"{options.minutes:g} minutes are not possible",
            remedy=f"Give more than 0 and at most {LONGEST_MINUTES:g}, and call again to go on",
        )
    ends = start + options.minutes * 60
    places = Places(root)
    packed = read_manifest(places.carried)
    names = _names(packed, options.modalities)
    carried = load_bundle(places.carried / "bundle")
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    machine = Machine.this(device)
    processor = machine.gpu or machine.processor
    cycles = Cycles(places.work, carried.path, processor=processor, sizes=options.sizes)
    options.output.mkdir(parents=True, exist_ok=True)
    note(places.work, "machine", asdict(machine))
    with ThreadPoolExecutor(max(1, min(machine.cores - 1, 8))) as pool:
        unpacking = [
            pool.submit(
                read_sheets,
                places.carried / "slices" / f"{name}_{split}.zip",
                places.work / "slices" / f"{name}_{split}",
            )
            for name in names
            for split in ("train", "val")
        ]
        tell(f"{len(names)} modalities on {processor}; slices and a trial of speed")
        speed, costs = _trial(places, names[0], options, ends, tell)
        for done in unpacking:
            done.result()
    reserve = _INFERENCE_SECONDS if options.inference and gpu else 0.0
    write_results(places.work, carried, packed, options.output)
    processes = options.processes or _processes(places, device, speed, len(names))
    plan = Plan(
        root=str(root),
        output=str(options.output),
        names=names,
        most=min(cycles.done(name) for name in names) + 1,
        ends=max(time.time() + 1, ends - reserve),
        processes=processes,
        workers=max(1, (machine.cores - processes) // processes) if gpu else 0,
        device=options.device,
        processor=processor,
        speed=speed,
        costs=costs,
        recipe=options.recipe,
        batch=options.batch,
        views=options.views,
        sizes=list(options.sizes),
    )
    file = places.work / "plan.json"
    plan.write(file)
    tell(f"training until {plan.ends - start:.0f} s, {processes} at a time, {speed}")
    late = _train(file, plan, ends)
    write_results(places.work, carried, packed, options.output)
    if options.inference and time.time() < ends:
        tell("inference")
        _inference(places, options, ends)
        write_results(places.work, carried, packed, options.output)
    trained = [name for name in names if cycles.done(name) >= plan.most]
    tell(f"{len(trained)} of {len(names)} modalities trained in {time.time() - start:.0f} s")
    if not trained:
        raise InputError(
            "no modality was trained to its end"
            + (": the time was over" if late else ", see the messages above"),
            remedy="Give more --minutes, fewer --modalities or fewer --views; a call on the same "
            "machine goes on from the checkpoints"
            if late
            else "",
        )


def _names(packed: dict[str, Packed], wanted: Sequence[str]) -> list[str]:
    unknown = [name for name in wanted if name not in packed]
    if unknown:
        raise InputError(
            f"{unknown[0]} is not packed", remedy=f"Packed: {', '.join(packed)}, or pack again"
        )
    return [name for name in packed if not wanted or name in wanted]


def _trial(
    places: Places, name: str, options: Options, ends: float, tell: Tell
) -> tuple[Speed, dict[int, float]]:
    """The fastest way and what a view costs in it; a process of its own measures."""
    recipe = planned_recipe(options.recipe, options.batch)
    tile = load_bundle(places.carried / "bundle").description.input_size
    sides = [size for stage in recipe.size_stages for size in stage.sizes] or [tile]
    smallest, largest = min(sides), max(sides)
    output = places.work / "trial.json"
    output.unlink(missing_ok=True)
    limit = _COMPILE_SECONDS if "compiled" in options.speeds else _TRIAL_SECONDS
    command = _own("trial", "--root", str(places.root), "--device", options.device)
    command += ["--modality", name, "--recipe", options.recipe, "--output", str(output)]
    if options.batch is not None:
        command += ["--batch", str(options.batch)]
    command += ["--sizes", *map(str, sorted({smallest, largest}, reverse=True)), "--speeds"]
    # a CPU does not wait for Python
    command += options.speeds if options.device != "cpu" else []
    _finished(command, min(limit, (ends - time.time()) / 3))
    found: dict[str, Any] = {}
    if output.is_file():
        found = json.loads(output.read_text(encoding="utf-8"))
    note(places.work, "training_speed", found)
    speed = fastest(found, largest)
    for way, figures in found.items():
        if FAILED in figures:
            tell(f"{way} cannot be used: {figures[FAILED]}")
        elif str(largest) in figures:
            tell(f"{way}: {figures[str(largest)]['views_per_second']} views/s at {largest}")
    return speed, seconds_per_view(found, speed) or dict(_USUAL_COST)


def _processes(places: Places, device: torch.device, speed: Speed, modalities: int) -> int:
    """How many train at a time: as many as keep the GPU busy and fit into its memory."""
    if device.type != "cuda":
        return 1
    _, total = torch.cuda.mem_get_info(device)
    trial = places.work / "trial.json"
    found = json.loads(trial.read_text(encoding="utf-8")) if trial.is_file() else {}
    peaks = [
        one["peak_memory_gb"] for size, one in found.get(speed, {}).items() if size != "failed"
    ]
    # appearance and further sides need some more
    need = max(peaks, default=20.0) * 1.25 * 1e9
    return max(1, min(GPU_PROCESSES, modalities, int(0.85 * total / need)))


def _train(plan_file: Path, plan: Plan, ends: float) -> bool:
    """Start the processes and wait for them; whether one had to be ended.

    What it did not finish goes on from its checkpoint when the run is called again on this machine.
    """
    started = [
        subprocess.Popen(_own("worker", "--plan", str(plan_file))) for _ in range(plan.processes)
    ]
    last = max(ends, plan.ends) + _GRACE
    late = False
    try:
        for process in started:
            try:
                process.wait(max(0.0, last - time.time()))
            except subprocess.TimeoutExpired:
                late = True
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return late


def _inference(places: Places, options: Options, ends: float) -> None:
    bundle = load_bundle(places.work / BEST)
    if not bundle.modalities:
        return
    output = places.work / "inference.json"
    command = _own("inference", "--bundle", str(bundle.path), "--device", options.device)
    _finished([*command, "--output", str(output)], max(_GRACE, ends - time.time()))
    if output.is_file():
        note(places.work, "inference", json.loads(output.read_text(encoding="utf-8")))


def _own(*words: str) -> list[str]:
    return [sys.executable, "-m", "esp_medsam_app.gpu_machine", *words]


def _finished(command: list[str], seconds: float) -> bool:
    """Whether a process ended well in time; what it wrote by then is there in any case."""
    try:
        return subprocess.run(command, timeout=max(1.0, seconds)).returncode == 0
    except subprocess.TimeoutExpired:
        return False
