"""Evaluation of a segmenter on reference cases, and the report of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.evaluation.metrics import (
    RESAMPLES,
    SEED,
    LabelScore,
    bootstrap_interval,
    score_labels,
)
from esp_medsam_app.evaluation.pairs import CasePair, read_pair
from esp_medsam_app.evaluation.silence import NONE, Silence
from esp_medsam_app.modalities import Modality

Metric = Literal["dice", "iou", "hd95"]
METRICS: tuple[Metric, ...] = ("dice", "iou", "hd95")

Predict = Callable[[MedicalImage], np.ndarray]


@dataclass(frozen=True)
class Oracle:
    """A predictor that is shown the reference, as one is whose prompt is drawn from it.

    Attributes:
        predict: image and reference label map (of the image's shape) to a label map.
    """

    predict: Callable[[MedicalImage, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case: by label, and their means over the labels.

    `seconds` is what the prediction took, of `slices` slices. `silence` counts those of them that
    hold no label at all.
    """

    name: str
    labels: Mapping[str, LabelScore]
    seconds: float
    slices: int = 1
    silence: Silence = NONE

    @property
    def dice(self) -> float:
        """Mean Dice over the labels (a label absent from both maps counts 1)."""
        return float(np.mean([score.dice for score in self.labels.values()]))

    @property
    def iou(self) -> float:
        """Mean IoU over the labels (a label absent from both maps counts 1)."""
        return float(np.mean([score.iou for score in self.labels.values()]))

    @property
    def hd95(self) -> float | None:
        """Mean HD95 over the labels that have one, in the report's unit; `None` if none has."""
        distances = [score.hd95 for score in self.labels.values() if score.hd95 is not None]
        return float(np.mean(distances)) if distances else None

    def to_json(self) -> dict[str, Any]:
        """The case's entry in the report's `per_case`."""
        return {
            "name": self.name,
            "dice": self.dice,
            "iou": self.iou,
            "hd95": self.hd95,
            "per_label": {
                name: {
                    "dice": score.dice,
                    "iou": score.iou,
                    "hd95": score.hd95,
                    "reference_voxels": score.reference_voxels,
                    "predicted_voxels": score.predicted_voxels,
                }
                for name, score in self.labels.items()
            },
            "seconds": round(self.seconds, 4),
            "slices": self.slices,
            "silence": self.silence.to_json(),
        }


@dataclass(frozen=True)
class EvaluatedCase:
    """What `evaluate_cases` hands to its caller after each case."""

    score: CaseScore
    image: MedicalImage
    prediction: np.ndarray


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (n - 1) and 95 % bootstrap interval over `cases` cases.

    `None` where there are too few cases: two for the deviation, one for the rest.
    """

    mean: float | None
    std: float | None
    ci95: tuple[float, float] | None
    cases: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Summary:
        """Summarise the values that are defined."""
        defined = np.array([value for value in values if value is not None], dtype=np.float64)
        return cls(
            mean=float(defined.mean()) if defined.size else None,
            std=float(defined.std(ddof=1)) if defined.size > 1 else None,
            ci95=bootstrap_interval(defined),
            cases=int(defined.size),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the interval is a list of two."""
        return {
            "mean": self.mean,
            "std": self.std,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "cases": self.cases,
        }


@dataclass(frozen=True)
class EvaluationReport:
    """Scores of a modality on reference cases.

    `distance_unit` ("mm" or "px") is HD95's. `failed` names cases that could not be scored: they
    are in no figure. `beside` counts images of other things, where some were given. `data` names
    the folders the cases came from, `left_out` cases of them that were not looked at; of the others
    the first `limit` were.
    """

    modality: str
    labels: tuple[str, ...]
    cases: tuple[CaseScore, ...]
    distance_unit: str
    failed: tuple[str, ...] = ()
    beside: Silence | None = None
    data: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    limit: int | None = None

    def summary(self, metric: Metric, label: str | None = None) -> Summary:
        """A metric over the cases: of one label, or of the cases' means over their labels."""
        if label is None:
            return Summary.of(getattr(case, metric) for case in self.cases)
        return Summary.of(getattr(case.labels[label], metric) for case in self.cases)

    @property
    def slices_per_second(self) -> float | None:
        """Of prediction alone. The first case warms up and counts only if there is no other."""
        timed = self.cases[1:] or self.cases
        seconds = sum(case.seconds for case in timed)
        return sum(case.slices for case in timed) / seconds if seconds else None

    @property
    def silence(self) -> Silence:
        """Slices of all cases that hold no label, and how many of them were marked."""
        return sum((case.silence for case in self.cases), NONE)

    def missed(self, label: str | None = None) -> int:
        """How often a label stands in only one of reference and prediction."""
        return sum(score.missed for score in self._scores(label))

    def absent(self, label: str | None = None) -> int:
        """How often a label stands in neither reference nor prediction."""
        return sum(score.absent for score in self._scores(label))

    def to_json(self) -> dict[str, Any]:
        """A JSON object of finite numbers and nulls."""
        result: dict[str, Any] = {"modality": self.modality, "cases": len(self.cases)}
        for metric in METRICS:
            result[metric] = {
                **self._summary_json(metric),
                "per_label": {name: self._summary_json(metric, name) for name in self.labels},
            }
        result["silence"] = self.silence.to_json()
        result["beside"] = None if self.beside is None else self.beside.to_json()
        result["data"] = list(self.data)
        result["left_out"] = list(self.left_out)
        result["limit"] = self.limit
        result["failed"] = list(self.failed)
        result["bootstrap"] = {"resamples": RESAMPLES, "seed": SEED}
        result["per_case"] = [case.to_json() for case in self.cases]
        return result

    def _summary_json(self, metric: Metric, label: str | None = None) -> dict[str, Any]:
        summary = self.summary(metric, label).to_json()
        if metric == "hd95":
            summary |= {
                "unit": self.distance_unit,
                "missed": self.missed(label),
                "absent": self.absent(label),
            }
        return summary

    def _scores(self, label: str | None) -> list[LabelScore]:
        names = self.labels if label is None else (label,)
        return [case.labels[name] for case in self.cases for name in names]


def evaluate_cases(
    pairs: Sequence[CasePair],
    predict: Predict | Oracle,
    modality: Modality,
    on_case: Callable[[EvaluatedCase], None] | None = None,
    on_failure: Callable[[CasePair, EspMedSamError], None] | None = None,
) -> EvaluationReport:
    """Predict every case and score it against its reference, one case in memory at a time.

    `predict` returns an integer label map of the image's shape, with the modality's label values.
    Distances are in mm; in pixels for pictures, which have no spacing. `on_case` is called after
    each case.

    A pair that `read_pair` refuses, an image that `predict` refuses and one whose distances are in
    another unit than those before (they have no common mean) raise EspMedSamError; with
    `on_failure` that is called instead and the others go on. Raises InputError without pairs and
    when every case failed, ValueError for a prediction of the wrong shape.
    """
    if not pairs:
        raise InputError("there is no case to evaluate")
    cases: list[CaseScore] = []
    failed: list[str] = []
    unit = ""
    for pair in pairs:
        try:
            case = _evaluate_case(pair, predict, modality, unit)
        except EspMedSamError as error:
            if on_failure is None:
                raise
            failed.append(pair.name)
            on_failure(pair, error)
            continue
        unit = distance_unit(case.image.grid)
        cases.append(case.score)
        if on_case is not None:
            on_case(case)
    if not cases:
        raise InputError("none of the cases could be evaluated", remedy="The reasons stand above")
    return EvaluationReport(
        modality.name, tuple(modality.labels), tuple(cases), unit, tuple(failed)
    )


def distance_unit(grid: Grid) -> str:
    """ "mm", or "px" for a picture. An X-ray lies nowhere in the patient, but has a pixel size."""
    return "mm" if grid.has_patient_space or set(grid.spacing) != {1.0} else "px"


def _evaluate_case(
    pair: CasePair,
    predict: Predict | Oracle,
    modality: Modality,
    unit: str,
) -> EvaluatedCase:
    image, reference = read_pair(pair, modality)
    own_unit = distance_unit(image.grid)
    if unit and unit != own_unit:
        raise InputError(
            f"distances of this case are in {own_unit}, those of the cases before in {unit}",
            path=pair.image,
            remedy="Evaluate pictures and images with a spacing apart",
        )
    start = time.perf_counter()
    if isinstance(predict, Oracle):
        prediction = predict.predict(image, reference.voxels)
    else:
        prediction = predict(image)
    seconds = time.perf_counter() - start
    if prediction.shape != image.grid.shape:
        raise ValueError(f"predicted {prediction.shape} for an image of {image.grid.shape}")
    # of a picture the spacing is 1 along each axis
    scores = score_labels(reference.voxels, prediction, modality.labels, image.grid.spacing)
    slices = len(SliceView.of(image.grid).slices(prediction))
    silence = Silence.of(prediction, image.grid, reference.voxels)
    score = CaseScore(pair.name, scores, seconds, slices, silence)
    return EvaluatedCase(score, image, prediction)


class Written(Protocol):
    """What can be written as a report."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object of finite numbers and nulls."""
        ...


def write_report(path: str | Path, report: Written) -> Path:
    """Write the report as JSON; the file appears whole or not at all.

    Raises InputError when the file cannot be written.
    """
    path = Path(path)
    text = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
    try:
        with written_whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the report cannot be written ({error.strerror or error})",
            path=path,
            remedy="Choose a file in a folder you may write to",
        ) from error
    return path
