"""Steps of a training: views a second by memory layout and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from esp_medsam_app.benchmark.machine import matrix_product
from esp_medsam_app.benchmark.timing import Latency, Step, interleaved, times_faster
from esp_medsam_app.inference.device import autocast, autocast_type
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.arithmetic import Arithmetic
from esp_medsam_app.training.groups import controller_groups, query_groups
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.weights.bundle import Bundle

# Views of a batch, and sides of them, pixels.
CPU_BATCH, GPU_BATCH = 4, 32
SIZES = (112, 256)
# what all other ways are compared with
EARLIER = "channels first, as in 0.1.0"


@dataclass(frozen=True)
class TrainingFigures:
    """What was measured of one way to take a step.

    Attributes:
        way: memory layout and type of products.
        size: side of the views, pixels.
        batch: views of a step.
        views_per_second: forward and backward, at the median step.
        teraflops: operations a second; a multiplication and an addition count as two.
        share_of_products: its rate as a share of the rate of matrix products of this type.
        times_earlier: its rate over the rate of version 0.1.0's layout, the median over the rounds.
    """

    way: str
    size: int
    batch: int
    views_per_second: float
    teraflops: float
    share_of_products: float
    times_earlier: float


@dataclass(frozen=True)
class TrainingReport:
    """What was measured of training.

    Attributes:
        modality: whose controller and queries learned.
        rounds: how often each way was timed.
        figures: what each way took at each size.
    """

    modality: str
    rounds: int
    figures: list[TrainingFigures]


def measure_training(
    bundle: Bundle,
    modality: str,
    device: torch.device,
    *,
    rounds: int,
    sizes: Sequence[int] = SIZES,
    on_step: Step | None = None,
) -> TrainingReport:
    """Time steps of a controller's training, all ways in turns.

    Views are random and already made: what is timed is the pass forward, the losses and the pass
    backward.

    Args:
        bundle: its weights; they stay as they are.
        modality: one of the bundle's.
        device: where to compute.
        rounds: how often each way is timed.
        sizes: sides of the views, pixels.
        on_step: called with the calls done and the calls in all.
    """
    batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    types = [dtype for dtype in (torch.float32, autocast_type(device)) if dtype is not None]
    ways: dict[str, _EarlierWay | Arithmetic] = {EARLIER: _EarlierWay(device)}
    ways |= {f"channels last, {_name(dtype)}": Arithmetic(dtype, device) for dtype in types}
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    gflop: dict[int, float] = {}
    for size in sizes:
        for name, way in ways.items():
            calls[name, size] = _step(bundle, modality, way, size, batch)
        with FlopCounterMode(display=False) as counter:
            calls[EARLIER, size]()
        gflop[size] = counter.get_total_flops() / batch / 1e9
    products: dict[str, float] = {}
    for dtype in types:
        calls[_name(dtype), 0], products[_name(dtype)] = matrix_product(device, dtype)
    seconds = interleaved(calls, rounds, on_step=on_step)
    figures = []
    for name, size in calls:
        if not size:
            continue
        rate = batch / Latency.of(seconds[name, size]).p50
        kind = _name(types[-1]) if name == EARLIER else name.rpartition(" ")[2]
        product = products[kind] / Latency.of(seconds[kind, 0]).p50
        figures.append(
            TrainingFigures(
                name,
                size,
                batch,
                rate,
                rate * gflop[size] / 1000,
                rate * gflop[size] / product,
                times_faster(seconds[name, size], seconds[EARLIER, size]),
            )
        )
    return TrainingReport(modality, rounds, figures)


def _step(
    bundle: Bundle, modality: str, way: _EarlierWay | Arithmetic, size: int, batch: int
) -> Callable[[], object]:
    """A step of the modality's controller and queries, without the optimiser's update."""
    network = way.prepare(bundle.load_network([modality]).eval().requires_grad_(False))
    for group in (
        *query_groups(network, [modality], 1),
        *controller_groups(network, [modality], 1),
    ):
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    images = way.inputs(torch.rand(batch, 3, size, size, generator=generator))
    labels = (torch.rand(batch, size, size, generator=generator) > 0.5).to(torch.uint8)
    labels = labels.to(way.device)
    loss = SegmentationLoss(0.5)

    def step() -> None:
        with way.context():
            masks, patches = network.decode(network.embed(images, modality), modality)
        loss(masks, patches, labels).total.backward()
        network.zero_grad(set_to_none=True)
        if way.device.type == "cuda":
            torch.cuda.synchronize(way.device)

    return step


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _EarlierWay:
    """Channels first, in the type that the processor's name suggests: version 0.1.0's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, network: EspMedSam) -> EspMedSam:
        """The network on the device."""
        return network.to(self.device)

    def inputs(self, tensor: Tensor) -> Tensor:
        """Images on the device."""
        return tensor.to(self.device)

    def context(self) -> AbstractContextManager[object]:
        """A context manager under which products have the type."""
        return autocast(self.device)
