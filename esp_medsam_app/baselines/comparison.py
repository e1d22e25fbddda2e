"""Several models on the same cases: scores side by side, and paired differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from esp_medsam_app.evaluation.report import EvaluationReport, Summary

OURS = "ESP-MedSAM"


@dataclass(frozen=True)
class Contender:
    """A model and the prompt it is given.

    Attributes:
        model: name for people.
        prompt: what it is told beside the image.
        parameters: of the model.
        training: how it was trained here, as JSON values; empty for released weights.
    """

    model: str
    prompt: str
    parameters: int
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model and prompt."""
        return self.model if self.prompt == "none" else f"{self.model} ({self.prompt})"


@dataclass(frozen=True)
class Entry:
    """A contender and what `evaluate_cases` found."""

    contender: Contender
    report: EvaluationReport


@dataclass(frozen=True)
class Comparison:
    """ESP-MedSAM and the baselines on the same cases.

    Attributes:
        ours: ESP-MedSAM's entry.
        others: the baselines'.
        device: all of them ran on.
    """

    ours: Entry
    others: tuple[Entry, ...]
    device: str

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, ESP-MedSAM first."""
        return (self.ours, *self.others)

    @property
    def failed(self) -> bool:
        """Whether a case is in one model's figures and not in another's, or in none."""
        return any(entry.report.failed for entry in self.entries)

    def difference(self, entry: Entry) -> Summary:
        """A baseline's Dice minus ESP-MedSAM's, case by case, where both have one.

        The interval is that of the mean difference: cases are drawn as pairs.
        """
        ours = {case.name: case.dice for case in self.ours.report.cases}
        return Summary.of(
            case.dice - ours[case.name] for case in entry.report.cases if case.name in ours
        )

    def to_json(self) -> dict[str, Any]:
        """ESP-MedSAM's report, and under `comparison` all models with the baselines' reports."""
        return self.ours.report.to_json() | {
            "comparison": {
                "device": self.device,
                "models": [self._entry_json(entry) for entry in self.entries],
            }
        }

    def _entry_json(self, entry: Entry) -> dict[str, Any]:
        contender, report = entry.contender, entry.report
        result: dict[str, Any] = {
            "model": contender.model,
            "prompt": contender.prompt,
            "parameters": contender.parameters,
            "slices_per_second": report.slices_per_second,
            "dice": report.summary("dice").to_json(),
        }
        if contender.training:
            result["training"] = contender.training
        if entry is not self.ours:
            result["difference"] = self.difference(entry).to_json()
            result["report"] = report.to_json()
        return result
