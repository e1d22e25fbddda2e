"""What the server starts ends with it: stopped, killed, or just gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from monailabel.utils.async_tasks import utils

from esp_medsam_app.server.children import SERVER, end_children, end_with_server

# a server, a training in it as MONAI Label starts it (from a thread), and a part of the training
SERVING = """
import subprocess, sys, threading
from esp_medsam_app.server.children import tie_children
tie_children()
def start():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
    print(child.stdout.readline().decode().strip(), flush=True)
    child.wait()
threading.Thread(target=start, daemon=True).start()
threading.Event().wait()
"""
TRAINING = """
import os, threading
from esp_medsam_app.server import children
{change}
print(os.getpid(), children.end_with_server(), flush=True)
threading.Event().wait()
"""
SECONDS = 30


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "change",
    [
        "",
        "children._by_the_kernel = lambda pid: False; children._LOOK_SECONDS = 0.01",
        pytest.param(
            "children.end_with_server = lambda: True",
            marks=pytest.mark.xfail(strict=True, reason="MONAI Label 0.8.5 leaves it running"),
        ),
    ],
    ids=["by the kernel", "by looking", "not at all"],
)
def test_a_training_ends_with_its_server(number: int, change: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVING, TRAINING.format(change=change)], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    pid, tied = server.stdout.readline().split()
    training = int(pid)
    try:
        assert tied == b"True"
        server.send_signal(number)
        server.wait(SECONDS)
        server.stdout.close()
        deadline = time.monotonic() + (SECONDS if "lambda: True" not in change else 0.3)
        while not gone(training) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(training)
    finally:
        if not gone(training):
            os.kill(training, signal.SIGKILL)


def test_a_process_that_no_server_started_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER, raising=False)
    assert end_with_server() is False
    monkeypatch.setenv(SERVER, str(os.getpid()))
    assert end_with_server() is False
    monkeypatch.setenv(SERVER, "1")
    assert end_with_server() is (os.getppid() == 1)
    monkeypatch.setenv(SERVER, "nonsense")
    assert end_with_server() is False


def test_the_end_of_the_server_ends_what_monai_label_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    part = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()'], "
    part += "stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"
    training = subprocess.Popen([sys.executable, "-c", part], stdout=subprocess.PIPE)
    assert training.stdout is not None
    inner = int(training.stdout.readline())
    monkeypatch.setattr(utils, "background_processes", {"train": {"a": training}, "scoring": {}})
    try:
        assert end_children() == 2
        training.wait(SECONDS)
        assert gone(inner)
    finally:
        training.kill()
        training.stdout.close()
    assert end_children() == 0
