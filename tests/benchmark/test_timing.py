"""Rounds, percentiles and ratios."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from esp_medsam_app.benchmark.timing import Latency, interleaved, times_faster


class Machine:
    """A clock that calls move, slower in every later round."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def call(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            slowness = 1 + len(self.order) // 3
            self.now += seconds * slowness
            self.order.append(name)

        return run


def test_calls_take_turns_and_none_keeps_its_place() -> None:
    machine = Machine()
    calls = {name: machine.call(name, 1) for name in "abc"}
    steps: list[tuple[int, int]] = []
    seconds = interleaved(
        calls, 3, clock=lambda: machine.now, on_step=lambda *step: steps.append(step)
    )
    assert "".join(machine.order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert steps == [(done, 12) for done in range(1, 13)]


def test_ratios_hold_on_a_machine_that_slows_down() -> None:
    machine = Machine()
    calls = {
        name: machine.call(name, cost) for name, cost in (("plain", 6), ("fast", 2), ("other", 1))
    }
    seconds = interleaved(calls, 5, clock=lambda: machine.now)
    assert times_faster(seconds["fast"], seconds["plain"]) == pytest.approx(3)
    assert times_faster(seconds["fast"], seconds["plain"], 4, 2) == pytest.approx(6)


def test_the_first_call_does_not_count() -> None:
    """It compiles, fills caches and takes memory."""
    times: Iterator[float] = iter([100.0, 1.0, 1.0])
    now = 0.0

    def call() -> None:
        nonlocal now
        now += next(times)

    assert interleaved({"a": call}, 2, clock=lambda: now) == {"a": [1.0, 1.0]}


def test_percentiles() -> None:
    latency = Latency.of([float(n) for n in range(101)])
    assert (latency.p50, latency.p99, latency.calls) == (50, 99, 101)
