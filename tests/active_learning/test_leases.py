"""Cases lent to annotators, in one process and in several."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from esp_medsam_app.active_learning.leases import Leases


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(tmp_path: Path, clock: Clock) -> Leases:
    return Leases(tmp_path / "some" / "leases.sqlite3", seconds=60, clock=clock)


def test_two_annotators_get_different_cases(leases: Leases) -> None:
    assert leases.take(["a", "b", "c"], "anna") == "a"
    assert leases.take(["a", "b", "c"], "ben") == "b"
    assert leases.held() == {"a": "anna", "b": "ben"}


def test_who_asks_again_moves_on_and_comes_back(leases: Leases) -> None:
    leases.take(["a", "b", "c"], "ben")
    taken = [leases.take(["a", "b", "c"], "anna") for _ in range(4)]
    assert taken == ["b", "c", "b", "c"]


def test_nobody_is_sent_home(leases: Leases) -> None:
    leases.take(["a", "b"], "anna")
    leases.take(["a", "b"], "ben")
    assert [leases.take(["b", "a"], who) for who in ("carl", "dora")] == ["a", "b"]
    assert leases.held() == {"a": "carl", "b": "dora"}


def test_nothing_left(leases: Leases) -> None:
    assert leases.take([], "anna") is None


def test_a_lease_ends_by_itself(leases: Leases, clock: Clock) -> None:
    leases.take(["a", "b"], "anna")
    clock.now += 30
    leases.take(["a", "b"], "anna")
    clock.now += 31
    assert leases.held() == {"b": "anna"}
    assert leases.take(["b", "a"], "ben") == "a"


def test_a_clock_that_was_wrong_lends_nothing_for_ever(leases: Leases, clock: Clock) -> None:
    clock.now += 1e9
    leases.take(["a"], "anna")
    clock.now -= 1e9
    assert leases.held() == {}


def test_a_submitted_case_is_free(leases: Leases) -> None:
    leases.take(["a", "b"], "anna")
    leases.release("a")
    leases.release("never lent")
    assert leases.take(["a", "b"], "ben") == "a"


def test_threads_of_several_servers(tmp_path: Path) -> None:
    path, order = tmp_path / "leases.sqlite3", [str(number) for number in range(24)]
    servers = [Leases(path), Leases(path)]
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: servers[n % 2].take(order, f"client {n}"), range(24)))
    assert sorted(taken, key=int) == order


def test_a_worker_that_dies_in_between_changes_nothing(leases: Leases) -> None:
    leases.take(["a"], "anna")
    program = f"""
import os, signal
from pathlib import Path
from esp_medsam_app.active_learning.database import transact
def dies(connection):
    connection.execute("DELETE FROM leases")
    os.kill(os.getpid(), signal.SIGKILL)
transact(Path({str(leases.path)!r}), "", dies)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert leases.held() == {"a": "anna"}


def test_a_damaged_file_is_put_aside(leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    leases.take(["a"], "anna")
    leases.path.write_bytes(b"\x00not a database" * 400)
    assert leases.take(["a"], "ben") == "a"
    assert "leases.sqlite3 is damaged" in caplog.text
    assert leases.held() == {"a": "ben"}
