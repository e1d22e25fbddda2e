"""Annotation replayed on a small problem, with the real backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.discs import DISC, draw_discs

from esp_medsam_app.evaluation.pairs import find_pairs
from esp_medsam_app.learning import simulation
from esp_medsam_app.learning.simulation import Replay, needed_for
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import Bundle, load_bundle, save_bundle

RECIPE = Recipe(
    views=24, cached_stage=2, decoder_steps=0, joint_steps=6, joint_batch=2, controller_rate=2e-3
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    backbone = replace(LITE_MEDSAM, input_size=64)
    folder = tmp_path / "bundle"
    save_bundle(folder, new_network(backbone, []), [], name="", backbone=backbone, training={})
    return load_bundle(folder)


@pytest.fixture
def replay(bundle: Bundle, tmp_path: Path) -> Replay:
    pool = find_pairs([draw_discs(tmp_path / "pool", 8)])
    test = find_pairs([draw_discs(tmp_path / "test", 3, seed=1)])
    return Replay(bundle, DISC, pool, test, RECIPE, Surroundings(tmp_path / "work"))


def test_strategies_start_alike_and_choose_differently(replay: Replay) -> None:
    found = {name: replay.run(name, 0, [2, 4]) for name in ("random", "uncertainty", "diversity")}
    first = {name: curve[2] for name, curve in found.items()}
    assert len({(dice, tuple(cases)) for dice, cases in first.values()}) == 1
    second = {name: curve[4][1] for name, curve in found.items()}
    for cases in second.values():
        assert len(set(cases)) == 4
        assert cases[:2] == first["random"][1]
    assert len({frozenset(cases) for cases in second.values()}) > 1
    assert replay.run("random", 1, [2])[2][1] != first["random"][1]


def test_only_annotated_cases_are_learned_from(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of cases without an annotation are ruined: nothing changes."""
    expected = replay.run("random", 0, [3])[3]
    learner = replay._learner(0)
    material = replay._material(learner)
    places = {[case.name for case in replay.pool].index(name) for name in expected[1]}
    ruined = material.features.clone()
    for item, case in enumerate(material.cases):
        if case not in places:
            ruined[item] = 7
    monkeypatch.setattr(Replay, "_material", lambda *_: replace(material, features=ruined))
    elsewhere = replace(replay, place=Surroundings(replay.place.work.with_name("again")))
    assert elsewhere.run("random", 0, [3])[3] == expected
    assert not torch.equal(ruined, material.features)


def test_a_replay_that_was_stopped_does_not_train_again(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = replay.run("uncertainty", 0, [2, 4])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("judged again")

    monkeypatch.setattr(simulation, "judge", fail)
    assert replay.run("uncertainty", 0, [2, 4]) == expected


@pytest.mark.parametrize(
    ("wanted", "needed"), [(0.5, 10.0), (0.6, 15.0), (0.7, 20.0), (0.75, 30.0), (0.9, None)]
)
def test_cases_needed(wanted: float, needed: float | None) -> None:
    curve = {10: 0.5, 20: 0.7, 40: 0.8}
    found = needed_for(wanted, curve)
    assert found == (None if needed is None else pytest.approx(needed))
