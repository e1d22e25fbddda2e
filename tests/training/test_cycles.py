"""Cycles of several modalities in one work folder: turns, weights, ledger."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from filelock import FileLock
from support.small_starter import small_starter

from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.cycle_ledger import append_file
from esp_medsam_app.training.cycles import LEDGER, ORDER, Cycles, Material, read_judged
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.sizes import SizeStage
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import load_bundle


def test_every_modality_of_the_order_is_in_the_catalogue() -> None:
    from esp_medsam_app.modalities import catalogue

    assert set(ORDER) <= set(catalogue())


def test_modalities_take_turns_and_leave_alone_what_another_process_trains(tmp_path: Path) -> None:
    cycles = Cycles(tmp_path, None, processor="any")
    turns: list[tuple[str, int]] = []

    def cycle(name: str, number: int) -> None:
        turns.append((name, number))
        (tmp_path / name / "done.json").write_text(json.dumps({"cycles": number + 1}))

    (tmp_path / "b").mkdir()
    with FileLock(tmp_path / "b" / "lock"):
        while cycles.take_turn(["a", "b", "c"], 1, cycle):
            pass
    assert turns == [("a", 0), ("c", 0)]
    while cycles.take_turn(["a", "b", "c"], 2, cycle):
        pass
    assert turns[2:] == [("b", 0), ("a", 1), ("b", 1), ("c", 1)]


def test_a_cycle_of_a_new_modality_is_kept_and_written_down(
    disc: Modality, disc_pairs: list[CasePair], tmp_path: Path
) -> None:
    start = small_starter(tmp_path / "start")
    cycles = Cycles(tmp_path / "work", start, processor="a processor", sizes=(32,))
    train, val = (
        prepare_slices(tmp_path / name, pairs, disc, tile=32)
        for name, pairs in (("train", disc_pairs[:2]), ("val", disc_pairs[2:]))
    )
    material = Material(disc, train, val, {"cases": 2, "sources": []})
    recipe = Recipe(
        views=None,
        cached_stage=0,
        decoder_steps=0,
        joint_steps=40,
        size_stages=(SizeStage(until=1, sizes=(32,)),),
        joint_batch=2,
        average=0.5,
        joint_decoder_rate=2e-3,
    )
    told: list[int] = []
    place = Surroundings(tmp_path, report=lambda task, done, total, losses: told.append(done))
    result = cycles.run(material, recipe, "a recipe", place)
    assert told[-1] == 40
    assert cycles.done("disc") == 1
    assert not list((tmp_path / "work" / "disc").glob("cycle_*"))
    best = cycles.best
    assert result.chosen is not None, [c.verdict for c in result.candidates]
    assert list(best.modalities) == ["microscopy_nuclei", "disc"]
    best.verify()
    assert best.usual_size("disc") == 32
    assert best.usual_size("microscopy_nuclei") == best.description.input_size
    run = best.description.training["runs"][-1]
    assert run["data"] == {"disc": {"cases": 2, "sources": []}}
    assert (run["size"], run["shared"]) == (32, False)
    weights = best.description.files[best.modality_file("disc")]
    judged = read_judged(tmp_path / "work" / "disc" / "judged.json", weights)
    assert judged == result.chosen.dice
    assert read_judged(tmp_path / "work" / "disc" / "judged.json", "other") is None
    # the start is as it was
    assert list(load_bundle(start).modalities) == ["microscopy_nuclei"]
    ledger = tmp_path / "work" / LEDGER
    with ledger.open(newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert (row["modality"], row["steps"], row["views"]) == ("disc", "40", "80")
    assert (row["processor"], row["recipe"]) == ("a processor", "a recipe")
    assert float(row["whole"]) > float(row["before"])
    # rows that are known are not added again
    assert append_file(tmp_path / "other.csv", ledger) == 1
    assert append_file(tmp_path / "other.csv", ledger) == 0
    assert (tmp_path / "other.csv").read_text() == ledger.read_text()


@pytest.mark.parametrize("content", [None, {"weights": "a", "dice": {"32": {"s": {"c": 0.5}}}}])
def test_what_was_judged_is_of_the_very_weights(tmp_path: Path, content: dict | None) -> None:
    file = tmp_path / "judged.json"
    if content is not None:
        file.write_text(json.dumps(content))
    assert read_judged(file, "b") is None
    found = read_judged(file, "a")
    assert found == (None if content is None else {32: {"s": {"c": 0.5}}})
