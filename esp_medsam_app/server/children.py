"""Processes that the server starts end with it, however it ends.

MONAI Label starts trainings, batches and scorings as processes of their own, which would go on
without the server: after `kill -9` nobody could stop them, and a second one could start beside.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time

import psutil

# The process that a child has to end with; set by the server, inherited by what it starts.
SERVER = "ESP_MEDSAM_SERVER_PID"
_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


def tie_children() -> None:
    """Let every process that this one starts from now on end with it."""
    os.environ[SERVER] = str(os.getpid())


def end_with_server() -> bool:
    """Let this process end with the server that started it.

    Returns:
        Whether a server did start it.
    """
    server = os.environ.get(SERVER, "")
    if not server.isdigit() or int(server) == os.getpid():
        return False
    if os.getppid() != int(server):
        if not psutil.pid_exists(int(server)):  # it ended before this one got here
            os._exit(1)
        # a process of a process: its own parent looks after it
        return False
    if not _by_the_kernel(int(server)):
        threading.Thread(target=_watch, args=(int(server),), daemon=True).start()
    return True


def end_children(timeout: float = 5) -> int:
    """End what MONAI Label has started from here, with all that it started in turn; how many."""
    from monailabel.utils.async_tasks.utils import background_processes

    started = [p.pid for running in background_processes.values() for p in list(running.values())]
    family: list[psutil.Process] = []
    for pid in started:
        try:
            process = psutil.Process(pid)
            family += [*process.children(recursive=True), process]
        except psutil.NoSuchProcess:
            continue
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=timeout)
    if family:
        logger.info("Ended %d processes with the server", len(family))
    return len(family)


def _by_the_kernel(server: int) -> bool:
    """Have Linux end this process with its parent; whether that can be done."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            return False
    except (OSError, AttributeError):
        return False
    if os.getppid() != server:  # it has ended just now
        os._exit(1)
    return True


def _watch(server: int) -> None:
    while os.getppid() == server:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
