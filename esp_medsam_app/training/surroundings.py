"""Where a training runs and whom it tells; nothing here changes what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from esp_medsam_app.training.processes import Processes

# bytes that the slices of one modality take on disk
DEFAULT_LIMIT = 4 * 2**30

Speed = Literal["plain", "graphs", "compiled"]
Report = Callable[[str, int, int, Mapping[str, float]], None]


class Curves(Protocol):
    """Where losses are drawn; TensorBoard's SummaryWriter is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """A point of a curve."""
        ...


def _silent(task: str, done: int, total: int, losses: Mapping[str, float]) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Surroundings:
    """Folder, device, processes and listeners of a run.

    Attributes:
        work: folder for slices, features and checkpoints. A run that was stopped goes on from it.
        device: torch device; bfloat16 is used where it multiplies in it.
        workers: processes that make views.
        slice_bytes: of the slices on disk, of one modality.
        processes: this one among those of torchrun.
        report: called with phase, steps done, steps in all and the running losses.
        curves: where the losses are drawn.
        speed: how the kernels of a pass are started (`passes.Passes`).
        ends_at: time of `time.monotonic` at which a phase ends, however many steps are left; none
            for no such time. What it gave by then counts.
    """

    work: Path
    device: str = "cpu"
    workers: int = 0
    slice_bytes: int = DEFAULT_LIMIT
    processes: Processes = field(default_factory=Processes)
    report: Report = _silent
    curves: Curves | None = None
    speed: Speed = "plain"
    ends_at: float | None = None

    def counting(self, task: str) -> Callable[[int, int], None]:
        """A report of something that has no losses."""
        return lambda done, total: self.report(task, done, total, {})
