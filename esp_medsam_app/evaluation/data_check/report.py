"""What a check of data finds, for the screen and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import EspMedSamError, InputError

Severity = Literal["error", "warning"]
Kind = Literal[
    "pair", "unreadable", "label values", "missing label", "empty label map", "constant image",
    "covers all", "touches all borders", "unusual size", "specks", "duplicate", "same image",
    "near duplicate", "same patient", "no patient", "left out",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One problem: which file of which split, what is wrong, what to do."""

    severity: Severity
    kind: Kind
    split: str
    path: Path
    problem: str
    remedy: str

    @classmethod
    def of_error(cls, error: EspMedSamError, kind: Kind, split: str, path: Path) -> Finding:
        """What reading a file raised."""
        return cls("error", kind, split, Path(error.path or path), error.problem, error.remedy)

    def __str__(self) -> str:
        text = f"{self.split}: {self.path}: {self.problem}"
        return f"{text}. {self.remedy}" if self.remedy else text

    def to_json(self) -> dict[str, str]:
        """Its entry in the report."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True)
class LabelCount:
    """How often a label occurs in a split.

    Attributes:
        cases: that have it.
        slices: that have it; a picture is one slice.
        mean_area: share of such a slice that it covers, mean over these slices; None without any.
    """

    cases: int
    slices: int
    mean_area: float | None


@dataclass(frozen=True)
class SplitCount:
    """Cases of a split whose image and label map could be read, and their slices."""

    cases: int
    slices: int
    labels: Mapping[str, LabelCount]


@dataclass(frozen=True)
class DataReport:
    """Counts by split, and everything found, the errors first."""

    modality: str
    splits: Mapping[str, SplitCount]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        """What must be mended before a training."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What a person should look at."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "modality": self.modality,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "splits": {name: asdict(count) for name, count in self.splits.items()},
            "findings": [finding.to_json() for finding in self.findings],
        }

    def write(self, path: Path) -> None:
        """Write `to_json()`; raises InputError when that fails."""
        try:
            with written_whole(path) as partial:
                partial.write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"the report cannot be written ({error.strerror or error})",
                path=path,
                remedy="Choose a place you may write to",
            ) from error
