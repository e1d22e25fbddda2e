"""How fast a device trains, in each way to start kernels: measured before a run is planned."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.modalities import get_modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.arithmetic import Arithmetic
from esp_medsam_app.training.groups import controller_groups, query_groups
from esp_medsam_app.training.losses import Losses, SegmentationLoss
from esp_medsam_app.training.passes import SPEEDS, Pass, Passes
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.starting import network_of
from esp_medsam_app.training.surroundings import Speed
from esp_medsam_app.weights.bundle import load_bundle

_WARM_UP, _STEPS, _CPU_STEPS = 4, 12, 2
# Another way to start the same kernels may differ by rounding from the plain one, not by more.
_TOLERANCE = 0.05

# in place of a side: why a way cannot be used
FAILED = "failed"

Figures = dict[str, Any]


def measure_costs(
    bundle: Path,
    name: str,
    recipe: Recipe,
    device: torch.device,
    *,
    speeds: Sequence[Speed],
    sizes: Sequence[int],
    output: Path,
) -> None:
    """Time whole steps (forward, backward, optimiser) and write the figures after each side.

    A way that fails is written down with its reason. This is for a process of its own: what a
    failed recording leaves on a GPU ends with it.

    Args:
        bundle: folder of the bundle.
        name: of the modality, which may be untrained.
        recipe: batch and rates.
        device: where to train.
        speeds: ways to try; `plain` comes first.
        sizes: sides of the input, pixels; the one that counts most first.
        output: JSON file of views a second, TFLOP a second and seconds a step, by way and side.
    """
    ready(device)
    network = network_of(load_bundle(bundle), get_modality(name))
    arithmetic = Arithmetic(torch.bfloat16 if device.type == "cuda" else torch.float32, device)
    arithmetic.prepare(network)
    found: dict[str, Figures] = {}

    def write(speed: str, size: str, said: object) -> None:
        found.setdefault(speed, {})[size] = said
        with written_whole(output) as partial:
            partial.write_text(json.dumps(found, indent=2), encoding="utf-8")

    for speed in dict.fromkeys(("plain", *speeds)):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            for size, said in _figures(network, name, recipe, arithmetic, speed, sizes):
                write(speed, str(size), said)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            write(speed, FAILED, reason)


def ready(device: torch.device) -> None:
    """Settings under which a device trains: one thread of a CPU, TF32 for what stays in float32.

    cuDNN does not look for the fastest algorithms: views are blurred by kernels of many sizes, and
    each would be looked for anew.
    """
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def fastest(found: Mapping[str, Figures], size: int) -> Speed:
    """The way that trains most views a second at this side; `plain` where nothing is faster."""
    rates: dict[Speed, float] = {"plain": 0.0}
    for speed in SPEEDS:
        figures = found.get(speed, {})
        if str(size) in figures and FAILED not in figures:
            rates[speed] = figures[str(size)]["views_per_second"]
    return max(rates, key=lambda speed: rates[speed])


def seconds_per_view(found: Mapping[str, Figures], speed: Speed) -> dict[int, float]:
    """Cost of a view at each side that was measured."""
    return {
        int(size): 1 / figures["views_per_second"]
        for size, figures in found.get(speed, {}).items()
        if size != FAILED
    }


def _figures(
    network: EspMedSam,
    name: str,
    recipe: Recipe,
    arithmetic: Arithmetic,
    speed: Speed,
    sizes: Sequence[int],
) -> Iterator[tuple[int, Figures]]:
    network.requires_grad_(False)
    groups = query_groups(network, [name], 0.0) + controller_groups(network, [name], 0.0)
    parameters = [parameter for group in groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.requires_grad_(True)
    loss = SegmentationLoss(recipe.patch_weight, recipe.pixel_loss)

    def make(modality: str) -> Pass:
        return Pass(network, modality, 0, loss, arithmetic)

    passes = Passes(make, speed, arithmetic.device)
    plain = Passes(make)
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    for size in sizes:
        generator = torch.Generator().manual_seed(size)
        images = torch.rand(recipe.joint_batch, 3, size, size, generator=generator)
        inputs = arithmetic.inputs(images)
        labels = (images[:, 0] > 0.5).to(torch.uint8).to(arithmetic.device)

        def step(inputs: Tensor = inputs, labels: Tensor = labels) -> None:
            optimiser.zero_grad(set_to_none=True)
            passes(name, inputs, labels).total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimiser.step()

        gflop = _gflop(plain, name, inputs, labels) / recipe.joint_batch
        seconds = _seconds(step, arithmetic.device)
        if passes.speed != speed:
            raise RuntimeError(f"{speed} gave way to plain passes")
        if speed != "plain":
            found = [
                _loss_and_gradient(way(name, inputs, labels), optimiser, parameters)
                for way in (plain, passes)
            ]
            _check_alike(*found)
        rate = recipe.joint_batch / seconds
        figures: Figures = {
            "views_per_second": round(rate, 1),
            "seconds_per_step": seconds,
            "batch": recipe.joint_batch,
            "gflop_per_view": round(gflop, 2),
            "teraflops": round(rate * gflop / 1000, 3),
            "peak_memory_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2)
            if arithmetic.device.type == "cuda"
            else None,
        }
        yield size, figures
    optimiser.zero_grad(set_to_none=True)


def _gflop(plain: Passes, name: str, inputs: Tensor, labels: Tensor) -> float:
    """GFLOP of a batch's matrix products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        plain(name, inputs, labels).total.backward()
    return counter.get_total_flops() / 1e9


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """Seconds a step, the median over some."""
    gpu = device.type == "cuda"
    times = []
    for number in range((_WARM_UP + _STEPS) if gpu else (1 + _CPU_STEPS)):
        start = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize(device)
        if number >= (_WARM_UP if gpu else 1):
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _loss_and_gradient(
    losses: Losses, optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> tuple[float, float]:
    """The loss and the norm of its gradient."""
    optimiser.zero_grad(set_to_none=True)
    losses.total.backward()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(losses.total.detach()), float(nn.utils.get_total_norm(gradients))


def _check_alike(plain: tuple[float, float], other: tuple[float, float]) -> None:
    for what, one, two in zip(("loss", "gradient's norm"), plain, other, strict=True):
        if not abs(one - two) <= _TOLERANCE * abs(one):
            raise RuntimeError(f"the {what} is {two:.4g} instead of {one:.4g}")
