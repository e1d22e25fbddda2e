"""Passes over tiles: each path, precision and batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from esp_medsam_app.benchmark.machine import matrix_product
from esp_medsam_app.benchmark.memory import Peak, peak_of
from esp_medsam_app.benchmark.timing import Latency, Step, interleaved, times_faster
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.device import autocast_type, choose_precision
from esp_medsam_app.inference.openvino_encoder import check_runtime
from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.profiles import FULL

Path = Literal["plain", "fast", "openvino"]
PATHS: tuple[Path, ...] = ("plain", "fast")
CPU_PRECISIONS = ("float32", "bfloat16")
GPU_PRECISIONS = (*CPU_PRECISIONS, "float16")
CPU_BATCHES, GPU_BATCHES = (1, 4), (1, 16, 64)


@dataclass(frozen=True)
class Contender:
    """One way to run a pass.

    Attributes:
        path: the network as it is written down, the fused one, or that in OpenVINO.
        precision: float32, bfloat16 or float16.
        batch: tiles in the pass.
        profile: whose weights.
    """

    path: Path
    precision: str
    batch: int
    profile: str = FULL


# All are compared with it.
PLAIN = Contender("plain", "float32", 1)


@dataclass(frozen=True)
class PassFigures:
    """What was measured of a contender.

    Attributes:
        contender: which.
        images_per_second: tiles a second at the median pass.
        latency: of a pass, from tiles in main memory to logits there.
        times_plain: its rate over that of `PLAIN`, the median over the rounds.
        gflop: of a tile; a multiplication and an addition count as two.
        share_of_products: of the rate at which the device multiplied matrices of this precision
            in the same rounds.
        peak: memory of a process that does nothing else; none if not measured.
    """

    contender: Contender
    images_per_second: float
    latency: Latency
    times_plain: float
    gflop: float
    share_of_products: float
    peak: Peak | None


@dataclass(frozen=True)
class PassReport:
    """Of all contenders.

    Attributes:
        modality: whose controller and queries they used.
        rounds: how often each was timed.
        teraflops: rate of matrix products by precision, the median over the rounds.
        figures: of each contender.
    """

    modality: str
    rounds: int
    teraflops: dict[str, float]
    figures: list[PassFigures]


def contenders(
    device: torch.device,
    *,
    quick: bool = False,
    precisions: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    openvino: bool = False,
    profiles: Sequence[str] = (FULL,),
) -> list[Contender]:
    """What is measured on a device; `PLAIN` is always among them, and first.

    Args:
        device: where passes run.
        quick: the fast path with one tile a pass alone.
        precisions: of both paths; if not given, those that the device is fast at.
        batches: tiles a pass; by the device if not given.
        openvino: it too.
        profiles: whose weights.

    Raises:
        InputError: no such precision, or no OpenVINO for this device.
    """
    if precisions is None:
        precisions = GPU_PRECISIONS
        if device.type == "cpu":
            precisions = CPU_PRECISIONS if autocast_type(device) else CPU_PRECISIONS[:1]
    for name in precisions:
        dtype = choose_precision(name, device)
        if name == "auto":
            raise InputError("--precision auto: name the precisions to compare")
        if openvino:
            check_runtime("openvino", device, dtype)
    if batches is None:
        batches = CPU_BATCHES if device.type == "cpu" else GPU_BATCHES
    paths: list[Path] = [*(PATHS[1:] if quick else PATHS)]
    if openvino:
        paths.append("openvino")
    wanted = [
        Contender(path, precision, batch, profile)
        for profile in profiles
        for batch in (batches[:1] if quick else batches)
        for path in paths
        for precision in precisions
    ]
    return [PLAIN, *(contender for contender in wanted if contender != PLAIN)]


def measure_passes(
    bundles: Mapping[str, Bundle],
    modality: str,
    device: torch.device,
    wanted: Sequence[Contender],
    *,
    rounds: int,
    memory: bool = True,
    on_step: Step | None = None,
) -> PassReport:
    """Time all contenders beside each other.

    Args:
        bundles: weights of each profile.
        modality: one of theirs.
        device: where passes run.
        wanted: `PLAIN` is one of them; before OpenVINO's of a profile comes a fast one.
        rounds: how often each is timed.
        memory: measure each one's memory too, in a process of its own.
        on_step: called with the passes done and the passes in all.
    """
    segmenters = _segmenters(bundles, device, wanted)
    calls: dict[Contender | str, Callable[[], object]] = {}
    gflop: dict[tuple[str, str], float] = {}
    for contender in wanted:
        segmenter = segmenters[contender.profile, contender.path, contender.precision]
        side = segmenter.bundle.description.input_size
        calls[contender] = _pass(segmenter, modality, contender.batch, side)
        counted = contender.profile, contender.path
        if counted in gflop:
            continue
        if contender.path == "openvino":
            # nearly the same work as the fused encoder's; torch cannot count it
            gflop[counted] = gflop[contender.profile, "fast"]
        else:
            gflop[counted] = counted_gflop(segmenter, modality, side)
    products: dict[str, float] = {}
    for precision in dict.fromkeys(contender.precision for contender in wanted):
        calls[precision], products[precision] = matrix_product(
            device, choose_precision(precision, device)
        )
    seconds = interleaved(calls, rounds, on_step=on_step)
    rates = {name: work / Latency.of(seconds[name]).p50 for name, work in products.items()}
    figures = []
    for contender in wanted:
        latency = Latency.of(seconds[contender])
        rate = contender.batch / latency.p50
        figures.append(
            PassFigures(
                contender,
                rate,
                latency,
                times_faster(seconds[contender], seconds[PLAIN], contender.batch),
                gflop[contender.profile, contender.path],
                rate * gflop[contender.profile, contender.path] / rates[contender.precision],
                peak_of(bundles[contender.profile], modality, device, contender)
                if memory
                else None,
            )
        )
    teraflops = {name: rate / 1000 for name, rate in rates.items()}
    return PassReport(modality, rounds, teraflops, figures)


def counted_gflop(segmenter: Segmenter, modality: str, side: int) -> float:
    """GFLOP of the matrix products and convolutions over one tile."""
    with FlopCounterMode(display=False) as counter:
        segmenter.logits(torch.zeros(1, 3, side, side), modality)
    return counter.get_total_flops() / 1e9


def _segmenters(
    bundles: Mapping[str, Bundle], device: torch.device, wanted: Sequence[Contender]
) -> dict[tuple[str, Path, str], Segmenter]:
    return {
        (profile, path, precision): Segmenter(
            bundles[profile],
            device=str(device),
            precision=precision,
            fast=path != "plain",
            runtime="openvino" if path == "openvino" else "torch",
        )
        for profile, path, precision in dict.fromkeys(
            (c.profile, c.path, c.precision) for c in wanted
        )
    }


def _pass(segmenter: Segmenter, modality: str, batch: int, side: int) -> Callable[[], object]:
    tiles = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return lambda: segmenter.logits(tiles, modality).cpu()
