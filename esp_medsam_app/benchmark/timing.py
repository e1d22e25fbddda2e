"""Timing things beside each other, so that what else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")
Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Latency:
    """Seconds that calls took.

    Attributes:
        p50, p99: percentiles; of few calls, p99 is hardly less than the slowest.
        calls: how many were timed.
    """

    p50: float
    p99: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The percentiles of some calls."""
        p50, p99 = np.percentile(np.asarray(seconds), [50, 99])
        return cls(float(p50), float(p99), len(seconds))


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Step | None = None,
) -> dict[Key, list[float]]:
    """Time every call once in each round, after one call of each that does not count.

    Every round begins with another call and ends with the one before it, so that none has a place
    of its own.

    Args:
        calls: what to time; each returns when its work is done.
        rounds: how often.
        clock: seconds.
        on_step: called with the calls done and the calls in all.

    Returns:
        Seconds of each call, by round.
    """
    keys = list(calls)
    seconds: dict[Key, list[float]] = {key: [] for key in keys}
    total, done = len(keys) * (rounds + 1), 0
    for number in range(-1, rounds):
        first = max(number, 0) % len(keys)
        for key in keys[first:] + keys[:first]:
            start = clock()
            calls[key]()
            if number >= 0:
                seconds[key].append(clock() - start)
            done += 1
            if on_step is not None:
                on_step(done, total)
    return seconds


def times_faster(
    seconds: Sequence[float], than: Sequence[float], work: float = 1, than_work: float = 1
) -> float:
    """The median over the rounds of how many times the rate is that of another.

    Args:
        seconds: of each round.
        than: the other's, of the same rounds.
        work: that is done in each call.
        than_work: the other's.
    """
    own, other = np.asarray(seconds) / work, np.asarray(than) / than_work
    return float(np.median(other / own))
