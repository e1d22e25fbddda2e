"""A background process that is killed says so in its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monailabel.utils.async_tasks import utils as background

from esp_medsam_app.server.killed_processes import explain_killed_processes

REAL = subprocess.Popen


def run(
    program: str, monkeypatch: pytest.MonkeyPatch, method: str = "train", explained: bool = True
) -> dict[str, Any]:
    """The task of a background process that runs this program, after its end."""

    def start(_: Any, **options: Any) -> subprocess.Popen[str]:
        return REAL([sys.executable, "-c", program], **options)

    monkeypatch.setattr(background.subprocess, "Popen", start)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    for name in ("background_tasks", "background_processes"):
        monkeypatch.setattr(background, name, {})
    if explained:
        explain_killed_processes()
        explain_killed_processes()  # as workers of one process would
    return dict(background.run_background_task({}, method, debug=True))


def killed_by(number: int) -> str:
    return f"import os; print('Epoch 1', flush=True); os.kill(os.getpid(), {number})"


@pytest.mark.parametrize(
    "explained",
    [
        True,
        pytest.param(
            False, marks=pytest.mark.xfail(strict=True, reason="MONAI Label 0.8.5 says nothing")
        ),
    ],
)
def test_a_training_that_is_killed_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, explained: bool
) -> None:
    task = run(killed_by(signal.SIGKILL), monkeypatch, explained=explained)
    assert task["status"] == "ERROR"
    last = list(task["details"])[-1]
    assert "SIGKILL" in last
    assert "memory" in last
    assert "train_batch_size or views lower" in last


def test_each_kind_of_work_and_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    task = run(killed_by(signal.SIGKILL), monkeypatch, "batch_infer")
    assert "goes on where it was" in list(task["details"])[-1]
    task = run(killed_by(signal.SIGBUS), monkeypatch)
    assert "disk" in list(task["details"])[-1]
    task = run(killed_by(signal.SIGTERM), monkeypatch, "scoring")
    assert "SIGTERM" in list(task["details"])[-1]


@pytest.mark.parametrize(("program", "status"), [("", "DONE"), ("exit(1)", "ERROR")])
def test_one_that_ends_by_itself_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, program: str, status: str
) -> None:
    task = run(f"print('its words', flush=True); {program}", monkeypatch)
    assert task["status"] == status
    assert not any("killed" in line for line in task["details"])


def test_the_last_lines_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; os.write(1, b'one\\ntwo\\n\\nthree\\n'); os._exit(1)"
    assert list(run(program, monkeypatch)["details"]) == ["one", "two", "three"]


def test_a_stop_takes_it_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What MONAI Label does to stop a training works on."""
    monkeypatch.setattr(background, "background_processes", {})
    explain_killed_processes()
    with REAL([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        background.background_processes["train"]["a"] = process
        task = {"id": "a", "status": "RUNNING", "details": []}
        monkeypatch.setattr(background, "background_tasks", {"train": [task]})
        assert background.stop_background_task("train") is task
    assert task["status"] == "STOPPED"
    assert background.processes("train") == {}
