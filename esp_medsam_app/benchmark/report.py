"""All that a benchmark measured, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from esp_medsam_app.benchmark.machine import Machine
from esp_medsam_app.benchmark.over_http import HttpReport
from esp_medsam_app.benchmark.passes import PassReport
from esp_medsam_app.benchmark.training import TrainingReport
from esp_medsam_app.benchmark.volume import VolumeReport

SCHEMA = 1


@dataclass(frozen=True)
class BenchmarkReport:
    """What was measured, and on what.

    Attributes:
        machine: as it was at the start.
        bundle: name of the weights.
        device: where passes ran.
        passes: over tiles.
        volume: from file to file; none if not measured.
        http: through a server; none if not measured.
        training: steps of a training; none if not measured.
    """

    machine: Machine
    bundle: str
    device: str
    passes: PassReport
    volume: VolumeReport | None = None
    http: HttpReport | None = None
    training: TrainingReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; seconds, MB of 10^6 bytes, GFLOP, TFLOP/s."""
        return {"schema": SCHEMA, **asdict(self)}
