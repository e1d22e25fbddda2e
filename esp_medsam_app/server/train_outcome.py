"""What became of a training, in one sentence: from its process to whoever asks the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LINE = "Result of the training: "
_NOT = "not activated, because"


def outcome(published: bool, version: int, reason: str) -> str:
    """Whether the version that a training made serves now, and why."""
    if published:
        return f"activated: version {version} serves ({reason})"
    return f"{_NOT} {reason} (kept as version {version})"


def announce(result: str) -> None:
    """Say it on the output, which the server reads, whatever the log leaves out."""
    print(f"{_LINE}{result}", flush=True)


def result_of(task: Mapping[str, Any]) -> str | None:
    """What became of a training, by its task; none while it runs or waits.

    Args:
        task: MONAI Label's: `status`, and the last lines of the output as `details`.
    """
    lines = [str(line) for line in task.get("details", ())]
    status = task["status"]
    if status == "STOPPED":
        return f"{_NOT} the training was stopped"
    if status == "ERROR":
        return f"{_NOT} the training failed: {lines[-1] if lines else 'its log may say why'}"
    if status != "DONE":
        return None
    told = [line.partition(_LINE)[2] for line in lines if _LINE in line]
    return told[-1] if told else f"{_NOT} the training told no result"
