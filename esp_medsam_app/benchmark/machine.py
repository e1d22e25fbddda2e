"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# Side of the square matrices that are multiplied; large enough for a device to reach its rate.
CPU_SIDE, GPU_SIDE = 1024, 8192


@dataclass(frozen=True)
class Machine:
    """A machine and the software that matters to speed.

    Attributes:
        processor: the CPU's name.
        cores: that this process may use.
        threads: of torch.
        memory_gb: main memory; none where the system does not tell.
        gpu: its name; none where passes run on the CPU.
        load: mean number of running processes in the minute before; well above zero, figures are
            those of a busy machine and only their ratios hold.
        system, python, pytorch: versions.
        allocator: settings of the C library's allocator that were given.
    """

    processor: str
    cores: int
    threads: int
    memory_gb: float | None
    gpu: str | None
    load: float | None
    system: str
    python: str
    pytorch: str
    allocator: dict[str, str]

    @classmethod
    def this(cls, device: torch.device) -> Machine:
        """This machine, as it is now."""
        return cls(
            processor=_processor(),
            cores=_cores(),
            threads=torch.get_num_threads(),
            memory_gb=_memory(),
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            system=platform.platform(),
            python=platform.python_version(),
            pytorch=torch.__version__,
            allocator={k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        )


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A product of two square matrices to time, and its GFLOP."""
    side = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return multiply, 2 * side**3 / 1e9


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
