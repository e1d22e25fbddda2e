"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable, Mapping

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Counter:
    """Goes up, by labels."""

    kind = "counter"

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, /, **labels: str) -> None:
        """Count, from any thread."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def value(self, **labels: str) -> float:
        """What has been counted for these very labels."""
        return self._values.get(tuple(sorted(labels.items())), 0)

    def lines(self) -> Iterable[str]:
        """In the text format."""
        with self._lock:
            values = dict(self._values)
        for labels, value in values.items():
            yield f"{self.name}{_written(labels)} {_number(value)}"


class Gauge:
    """A value that is asked for when somebody looks."""

    kind = "gauge"

    def __init__(
        self, name: str, what: str, read: Callable[[], Mapping[str, float] | float], label: str = ""
    ) -> None:
        self.name, self.what, self._read, self._label = name, what, read, label

    def lines(self) -> Iterable[str]:
        """In the text format; none if it cannot be told now."""
        try:
            found = self._read()
        except Exception:  # one value that cannot be told shall not hide the others
            return
        values = found if isinstance(found, Mapping) else {"": found}
        for name, value in values.items():
            labels = ((self._label, name),) if self._label else ()
            yield f"{self.name}{_written(labels)} {_number(value)}"


class Histogram:
    """How often values were below each bound, by labels."""

    kind = "histogram"

    def __init__(self, name: str, what: str, bounds: tuple[float, ...] = SECONDS) -> None:
        self.name, self.what, self.bounds = name, what, bounds
        self._values: dict[Labels, tuple[list[int], float]] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, /, **labels: str) -> None:
        """Count a value, from any thread."""
        key = tuple(sorted(labels.items()))
        place = bisect.bisect_left(self.bounds, value)
        with self._lock:
            counts, total = self._values.get(key) or ([0] * (len(self.bounds) + 1), 0.0)
            counts[place] += 1
            self._values[key] = counts, total + value

    def lines(self) -> Iterable[str]:
        """In the text format."""
        with self._lock:
            values = {key: (list(counts), total) for key, (counts, total) in self._values.items()}
        for labels, (counts, total) in values.items():
            below = 0
            for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
                below += count
                yield f"{self.name}_bucket{_written((*labels, ('le', bound)))} {below}"
            yield f"{self.name}_sum{_written(labels)} {_number(total)}"
            yield f"{self.name}_count{_written(labels)} {below}"


class Metrics:
    """All that is measured."""

    def __init__(self) -> None:
        self.requests = Counter("esp_medsam_requests_total", "Requests that were answered")
        self.seconds = Histogram("esp_medsam_request_seconds", "Time to the end of the answer")
        self.refused = Counter("esp_medsam_refused_total", "Requests told to come back later")
        self.left = Counter("esp_medsam_left_total", "Clients that left while they waited")
        started = time.time()
        self._all: list[Counter | Gauge | Histogram] = [
            self.requests,
            self.seconds,
            self.refused,
            self.left,
            Gauge("esp_medsam_start_time_seconds", "When the server started", lambda: started),
        ]

    def gauge(
        self, name: str, what: str, read: Callable[[], Mapping[str, float] | float], label: str = ""
    ) -> None:
        """Add a gauge; with `label`, one value for each of its values."""
        self._all.append(Gauge(f"esp_medsam_{name}", what, read, label))

    def text(self) -> str:
        """In the text format."""
        lines: list[str] = []
        for one in self._all:
            lines += [f"# HELP {one.name} {one.what}", f"# TYPE {one.name} {one.kind}"]
            lines += one.lines()
        return "\n".join(lines) + "\n"


def _written(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
