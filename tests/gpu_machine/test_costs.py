"""What a step costs, and what is planned of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.small_starter import small_starter

from esp_medsam_app.gpu_machine import costs
from esp_medsam_app.gpu_machine.costs import fastest, measure_costs, seconds_per_view
from esp_medsam_app.gpu_machine.worker import cost_of, mean_cost
from esp_medsam_app.training.losses import Losses
from esp_medsam_app.training.passes import Pass, Passes
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sizes import SizeStage
from esp_medsam_app.training.surroundings import Speed

RECIPE = Recipe(views=None, cached_stage=0, joint_batch=2)


def test_steps_are_timed_at_every_side_and_ways_that_fail_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Passes):
        """Plain passes, but that what is called graphs gives another loss."""

        def __init__(self, make: Callable[[str], Pass], speed: Speed = "plain", *_: object) -> None:
            super().__init__(make)
            self.speed = speed

        def _prepared(self, modality: str, *_: object) -> Pass:
            return self.make(modality)

        def __call__(self, modality: str, inputs: torch.Tensor, labels: torch.Tensor) -> Losses:
            losses = super().__call__(modality, inputs, labels)
            return losses._replace(total=2 * losses.total) if self.speed == "graphs" else losses

    monkeypatch.setattr(costs, "Passes", Wrong)
    bundle, output = small_starter(tmp_path / "bundle"), tmp_path / "trial.json"
    measure_costs(
        bundle,
        "microscopy_nuclei",
        RECIPE,
        torch.device("cpu"),
        speeds=["graphs"],
        sizes=[48, 32],
        output=output,
    )
    found = json.loads(output.read_text())
    assert list(found["plain"]) == ["48", "32"]
    assert found["plain"]["48"]["gflop_per_view"] > found["plain"]["32"]["gflop_per_view"] > 0
    assert found["plain"]["48"]["teraflops"] > 0
    assert "the loss is" in found["graphs"]["failed"]
    assert fastest(found, 48) == "plain"
    assert set(seconds_per_view(found, "plain")) == {48, 32}


def test_the_fastest_way_at_the_side_that_counts() -> None:
    found = {
        "plain": {"256": {"views_per_second": 100.0}},
        "graphs": {"256": {"views_per_second": 150.0}},
        "compiled": {"256": {"views_per_second": 200.0}, "failed": "why"},
    }
    assert fastest(found, 256) == "graphs"
    assert fastest(found, 128) == "plain"
    assert fastest({}, 256) == "plain"
    assert seconds_per_view({}, "plain") == {}


def test_costs_grow_with_the_pixels() -> None:
    costs = {128: 1.0, 256: 2.5}
    assert cost_of(costs, 128) == 1.0
    assert cost_of(costs, 256) == pytest.approx(2.5)
    assert 1.0 < cost_of(costs, 192) < 2.5
    assert cost_of({256: 2.0}, 128) == pytest.approx(0.5)
    stages = (SizeStage(until=0.5, sizes=(128,)), SizeStage(until=1, sizes=(128, 256)))
    assert mean_cost(costs, stages, 256) == pytest.approx(0.5 * 1 + 0.5 * 1.75)
    assert mean_cost(costs, (), 256) == pytest.approx(2.5)
