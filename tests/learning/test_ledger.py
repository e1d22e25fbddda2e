"""Held-out patients stay held out."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp_medsam_app.errors import InputError
from esp_medsam_app.learning.ledger import SplitLedger


def keyed(*names: str) -> dict[str, list[str]]:
    return {name: [f"patient:{name}"] for name in names}


def test_first_cases_are_split(tmp_path: Path) -> None:
    split = SplitLedger(tmp_path / "ledger.json", 0.2).assign(keyed(*map(str, range(10))))
    assert (len(split.train), len(split.validation), split.left_out) == (8, 2, [])


def test_one_patient_is_trained_on_and_of_two_one_is_held_out(tmp_path: Path) -> None:
    ledger = SplitLedger(tmp_path / "ledger.json", 0.2)
    assert ledger.assign(keyed("a")).train == ["a"]
    split = ledger.assign(keyed("a", "b"))
    assert (split.train, split.validation) == (["a"], ["b"])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=6),
    st.floats(0.05, 0.6),
    st.data(),
)
def test_nobody_ever_changes_sides(
    tmp_path: Path, rounds: list[set[int]], share: float, data: st.DataObject
) -> None:
    path = tmp_path / data.draw(st.uuids()).hex / "ledger.json"
    sides: dict[str, str] = {}
    for turn, patients in enumerate(rounds):
        # another share, and each patient with an image of its own a round
        ledger = SplitLedger(path, share / (turn + 1))
        cases = {f"{p}-{turn}": [f"patient:{p}", f"image:{p}-{turn}"] for p in patients}
        split = ledger.assign(cases)
        assert split.left_out == []
        assert sorted(split.train + split.validation) == sorted(cases)
        for side, names in (("train", split.train), ("validation", split.validation)):
            for name in names:
                assert sides.setdefault(name.split("-")[0], side) == side


def test_share_is_reached_as_cases_come_in(tmp_path: Path) -> None:
    ledger = SplitLedger(tmp_path / "ledger.json", 0.25)
    cases: dict[str, list[str]] = {}
    for number in range(40):
        cases |= keyed(str(number))
        split = ledger.assign(cases)
    assert len(split.validation) == 10


def test_the_same_image_under_another_name_stays_on_its_side(tmp_path: Path) -> None:
    ledger = SplitLedger(tmp_path / "ledger.json", 0.5)
    first = ledger.assign({name: [f"image:{name}"] for name in "abcd"})
    again = ledger.assign({name + "-copy": [f"image:{name}"] for name in "abcd"})
    assert again.train == [name + "-copy" for name in first.train]
    assert again.validation == [name + "-copy" for name in first.validation]


def test_one_patient_on_both_sides_is_used_for_nothing(tmp_path: Path) -> None:
    """Two images that were strangers, until DICOM tells that they are of one patient."""
    ledger = SplitLedger(tmp_path / "ledger.json", 0.5)
    first = ledger.assign({name: [f"image:{name}"] for name in "ab"})
    late = {name: [f"image:{name}", "patient:1"] for name in "ab"}
    split = ledger.assign(late)
    assert split.left_out == ["a", "b"]
    assert first.train + first.validation != []
    # a third image of that patient is not learned from: its patient was held out
    assert ledger.assign({"c": ["image:c", "patient:1"]}).train == []


def test_damaged_ledger_is_not_started_afresh(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = SplitLedger(path)
    ledger.assign(keyed(*"abcde"))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match="ledger of held-out cases cannot be read"):
        ledger.assign(keyed("f"))


def _assign(path: Path, first: int) -> None:
    SplitLedger(path, 0.2).assign(keyed(*map(str, range(first, first + 20))))


def test_two_processes_lose_nobody(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_assign, args=(path, 20 * n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(json.loads(path.read_text())["sides"]) == 80
