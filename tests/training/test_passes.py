"""Ways to start a pass's kernels: all give the same, and one that fails gives way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training import optimisation, passes
from esp_medsam_app.training.arithmetic import Arithmetic
from esp_medsam_app.training.losses import SegmentationLoss
from esp_medsam_app.training.passes import Pass, Passes
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.training.trainer import Learners, train
from esp_medsam_app.weights.backbones import Backbone

CPU = torch.device("cpu")
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = (IMAGES[:, 0] > 0.5).to(torch.uint8)


@pytest.fixture
def make(small_backbone: Backbone, disc: Modality) -> Callable[[str], Pass]:
    network = new_network(small_backbone, [disc]).requires_grad_(False)
    network.queries["disc"].requires_grad_(True)
    loss = SegmentationLoss(0.5)
    return lambda name: Pass(network, name, 0, loss, Arithmetic(torch.float32, CPU))


def test_a_pass_gives_its_losses_and_gradients(make: Callable[[str], Pass]) -> None:
    losses = Passes(make)("disc", IMAGES, LABELS)
    losses.total.backward()
    assert losses.total > losses.mask > 0
    assert all(p.grad is not None for p in make("disc").network.queries["disc"].parameters())


def test_graphs_are_for_gpus_alone(make: Callable[[str], Pass]) -> None:
    assert Passes(make, "graphs", CPU).speed == "plain"


def refused(*_: object) -> Callable[..., object]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def refused_at_once(_: object) -> Callable[..., object]:
    return refused


@pytest.mark.parametrize(
    ("speed", "step", "broken"),
    [("graphs", "_recorded", refused), ("compiled", "_compiled", refused_at_once)],
)
def test_a_way_that_fails_gives_way_to_plain_passes(
    make: Callable[[str], Pass],
    speed: str,
    step: str,
    broken: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(passes, step, broken)
    tried = Passes(make)
    # as on a GPU
    tried.speed = speed  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        losses = tried("disc", IMAGES, LABELS)
    assert torch.equal(losses.total, Passes(make)("disc", IMAGES, LABELS).total)
    assert tried.speed == "plain"
    assert f"speed {speed} fails here (operation not permitted when stream is capturing)" in (
        caplog.text
    )
    losses.total.backward()


def test_a_run_ends_at_its_time_with_what_it_has(
    small_backbone: Backbone,
    disc: Modality,
    disc_pairs: list[CasePair],
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = small_recipe.model_copy(
        update={"views": None, "cached_stage": 0, "decoder_steps": 0, "joint_steps": 10**6}
    )
    steps: list[int] = []
    # a clock that a step takes a second on
    clock = SimpleNamespace(monotonic=lambda: float(len(steps)))
    monkeypatch.setattr(optimisation, "time", clock)
    cache = prepare_slices(tmp_path / "cache", disc_pairs, disc, tile=32)
    network = train(
        new_network(small_backbone, [disc]),
        {"disc": cache},
        [disc],
        recipe,
        tile=32,
        place=Surroundings(
            tmp_path / "work",
            ends_at=2.5,
            report=lambda phase, done, total, losses: steps.append(done),
        ),
        learners=Learners(shared=False),
    )
    assert steps == [1, 2, 3]
    fresh = new_network(small_backbone, [disc]).queries["disc"].state_dict()
    trained = network.queries["disc"].state_dict()
    assert any(not torch.equal(fresh[key], trained[key]) for key in fresh)
