"""In which type and memory layout a training computes: measured on this machine, not assumed."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.inference.device import cast_to
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.training.surroundings import Surroundings

# On a GPU the work must take longer than starting its kernels.
_GPU_SIDE, _GPU_BATCH = 256, 16
CHOICE = "arithmetic.json"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Enough work to tell the types apart, in a second or two on two cores.
_SIDE, _BATCH, _REPEATS = 64, 2, 2
_KNOWN: dict[tuple[str, str], dict[str, float]] = {}


@dataclass(frozen=True)
class Arithmetic:
    """How a training computes.

    Channels come last in memory throughout: convolutions and matrix products then read the same
    layout, and nothing is copied between them.

    Attributes:
        dtype: of products; sums, losses and weights stay in float32.
        device: where to compute.
    """

    dtype: torch.dtype
    device: torch.device

    def prepare(self, network: EspMedSam) -> EspMedSam:
        """The network on the device, in this memory layout. It is changed."""
        return network.to(self.device).to(memory_format=torch.channels_last)

    def inputs(self, tensor: Tensor) -> Tensor:
        """Images or features `[B, C, H, W]` on the device, in this layout and a type that fits."""
        kept = tensor.dtype if tensor.dtype != torch.bfloat16 or self.low else torch.float32
        placed = tensor.to(self.device, kept, non_blocking=True)
        return placed.contiguous(memory_format=torch.channels_last)

    @property
    def low(self) -> bool:
        """Whether products are in bfloat16."""
        return self.dtype is torch.bfloat16

    def context(self) -> AbstractContextManager[object]:
        """A context manager under which products have this type."""
        return cast_to(self.dtype, self.device)


def keep_choice(work: Path, dtype: str) -> None:
    """Decide for a work folder in which type it computes, so that nothing is measured.

    Args:
        work: the folder.
        dtype: `float32` or `bfloat16`.
    """
    with written_whole(work / CHOICE) as partial:
        partial.write_text(json.dumps({"dtype": dtype, "seconds": {}}), encoding="utf-8")


def choose_arithmetic(network: EspMedSam, modality: str, place: Surroundings) -> Arithmetic:
    """The faster type for this network on this device; the first process measures for all.

    The choice is kept in the work folder, so that a run that was stopped goes on as it began.

    Args:
        network: what is trained.
        modality: one of its modalities.
        place: folder, device and processes.
    """
    device = torch.device(place.device)
    file = place.work / CHOICE
    if place.processes.first and not file.is_file():
        seconds = _measured(network, modality, device)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as partial:
            fastest = min(seconds, key=lambda name: seconds[name])
            partial.write_text(json.dumps({"dtype": fastest, "seconds": seconds}), encoding="utf-8")
    place.processes.wait()
    return Arithmetic(_TYPES[json.loads(file.read_text(encoding="utf-8"))["dtype"]], device)


def _measured(network: EspMedSam, modality: str, device: torch.device) -> dict[str, float]:
    """Time of a pass by type; measured once in a process for each device and kind of encoder."""
    key = str(device), type(network.encoder).__name__
    if key not in _KNOWN:
        _KNOWN[key] = {
            name: _seconds(network, modality, Arithmetic(dtype, device))
            for name, dtype in _TYPES.items()
        }
    return _KNOWN[key]


def _seconds(network: EspMedSam, modality: str, arithmetic: Arithmetic) -> float:
    """Time of a pass forward and backward as a controller's training makes it, the best of a few.

    On a CPU it is the time of this process alone, which other work on the machine does not change.
    """
    arithmetic.prepare(network)
    needed = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.requires_grad_(False)
    network.queries[modality].requires_grad_(True)
    controller = network.controller(modality)
    if controller is not None:
        controller.requires_grad_(True)
    on_cpu = arithmetic.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    batch, side = (_BATCH, _SIDE) if on_cpu else (_GPU_BATCH, _GPU_SIDE)
    images = arithmetic.inputs(torch.zeros(batch, 3, side, side))
    best = float("inf")
    for _ in range(1 + _REPEATS):
        start = clock()
        with torch.enable_grad(), arithmetic.context():
            masks, _ = network.decode(network.embed(images, modality), modality)
        masks.float().sum().backward()
        if arithmetic.device.type == "cuda":
            torch.cuda.synchronize(arithmetic.device)
        best = min(best, clock() - start)
    for parameter, need in needed.items():
        parameter.grad = None
        parameter.requires_grad_(need)
    return best
