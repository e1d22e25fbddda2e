"""Background work tells in its status how it ended.

MONAI Label runs trainings, batches and scorings as processes. One that the system kills, for lack
of memory above all, says nothing any more, and MONAI Label only logs its return code. Of one that
ends by itself it loses the last lines, where errors are explained.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from monailabel.utils.async_tasks import utils as background

_METHODS = ("train", "batch_infer", "scoring")
_STOPPED = "somebody stopped it, or, most likely, this machine's memory ran out"
_REASONS: Mapping[str, Mapping[int, str]] = {
    "train": {
        signal.SIGKILL: f"{_STOPPED}. Set train_batch_size or views lower, or stop what else "
        "runs here. What serves is untouched",
        signal.SIGBUS: "most likely the disk of the app's folder is full. What serves is untouched",
    },
    "batch_infer": {
        signal.SIGKILL: f"{_STOPPED}. Start it again: it goes on where it was",
    },
    "scoring": {signal.SIGKILL: f"{_STOPPED}. Start it again"},
}

logger = logging.getLogger(__name__)


def explain_killed_processes() -> None:
    """Have the status of each process that was killed say so; to be called when a server starts."""
    for method in _METHODS:
        running = background.background_processes.get(method)
        if not isinstance(running, WatchedProcesses):
            background.background_processes[method] = WatchedProcesses(method, running or {})


class WatchedProcesses(dict[str, subprocess.Popen[str]]):
    """MONAI Label's processes of one method by task; one that has ended is taken out of it.

    Args:
        method: MONAI Label's word for what they do.
        running: those there are.
    """

    def __init__(self, method: str, running: Mapping[str, subprocess.Popen[str]]) -> None:
        super().__init__(running)
        self.method = method

    def pop(self, key: str, default: Any = None) -> Any:
        """Take a process out; of one that has ended, its task's `details` get the last lines."""
        process = super().pop(key, default)
        code = getattr(process, "returncode", None)
        if code is None:
            return process
        lines = _unread(process)
        if code < 0:
            lines.append(self._told(-code))
        for line in lines:
            logger.info("%s", line)
        for task in background.tasks(self.method):
            if task["id"] == key:
                task.setdefault("details", []).extend(lines)
        return process

    def _told(self, number: int) -> str:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        reason = _REASONS[self.method].get(number, "the log may say why")
        return f"The process was killed ({name}): {reason}"


def _unread(process: subprocess.Popen[str]) -> list[str]:
    """What it has printed and nobody has read; waits for nothing, as its children may live on."""
    if process.stdout is None or process.stdout.closed:
        return []
    os.set_blocking(process.stdout.fileno(), False)
    lines = iter(process.stdout.readline, "")
    return [line.rstrip() for line in lines if line.strip()]
