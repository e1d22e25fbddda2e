"""Paired differences and the JSON of a comparison."""

from __future__ import annotations

import json

import numpy as np
import pytest

from esp_medsam_app.baselines.comparison import OURS, Comparison, Contender, Entry
from esp_medsam_app.evaluation.metrics import LabelScore
from esp_medsam_app.evaluation.report import CaseScore, EvaluationReport


def report(scores: dict[str, float], failed: tuple[str, ...] = ()) -> EvaluationReport:
    cases = tuple(
        CaseScore(name, {"blob": LabelScore(dice, dice, None, 4, 4)}, 0.5, slices=3)
        for name, dice in scores.items()
    )
    return EvaluationReport("one", ("blob",), cases, "px", failed)


def comparison(ours: EvaluationReport, *others: EvaluationReport) -> Comparison:
    return Comparison(
        Entry(Contender(OURS, "none", 10), ours),
        tuple(Entry(Contender("other", "box", 20, {"views": 4}), other) for other in others),
        "cpu",
    )


def test_difference_is_paired() -> None:
    """Cases vary far more than the models differ: only pairs show the difference."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 0.8, 30)
    ours = report({str(i): value for i, value in enumerate(hard)})
    # in another order
    better = report({str(i): hard[i] + 0.05 + 0.01 * (i % 2) for i in reversed(range(30))})
    both = comparison(ours, better)
    found = both.difference(both.others[0])
    assert found.mean == pytest.approx(0.055)
    assert found.ci95 is not None
    assert found.ci95[0] > 0.05
    assert found.ci95[1] < 0.06
    # unpaired intervals overlap
    theirs, own = better.summary("dice").ci95, ours.summary("dice").ci95
    assert theirs is not None
    assert own is not None
    assert theirs[0] < own[1]


def test_cases_that_one_model_failed_on_are_in_no_difference() -> None:
    both = comparison(report({"a": 0.5, "b": 0.9}), report({"a": 0.6}, failed=("b",)))
    found = both.difference(both.others[0])
    assert (found.cases, found.mean) == (1, pytest.approx(0.1))
    assert both.failed
    assert not comparison(report({"a": 0.5}), report({"a": 0.6})).failed


def test_json_is_our_report_with_the_models_beside() -> None:
    ours, other = report({"a": 0.5, "b": 0.7}), report({"a": 0.4, "b": 0.8})
    content = json.loads(json.dumps(comparison(ours, other).to_json(), allow_nan=False))
    assert content.items() >= ours.to_json().items()
    first, second = content["comparison"]["models"]
    assert (first["model"], first["prompt"], first["parameters"]) == (OURS, "none", 10)
    assert first["dice"] == ours.summary("dice").to_json()
    assert "difference" not in first
    assert second["difference"]["mean"] == pytest.approx(0)
    assert second["report"] == other.to_json()
    assert second["training"] == {"views": 4}
    assert second["slices_per_second"] == pytest.approx(6)
    assert content["comparison"]["device"] == "cpu"
