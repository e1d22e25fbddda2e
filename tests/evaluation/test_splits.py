"""Splits by patient: stable, of the wished shares, and each patient in one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.dicom_series import write_series

from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.evaluation.split_folders import copy_split, plan_split
from esp_medsam_app.evaluation.splits import patient_of, patient_pattern, split_of

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@given(patient=st.text(), seed=st.integers(), shares=st.permutations(sorted(SHARES)))
def test_the_order_of_shares_and_their_scale_do_not_matter(
    patient: str, seed: int, shares: list[str]
) -> None:
    found = split_of(patient, SHARES, seed)
    assert found in SHARES
    assert split_of(patient, {name: SHARES[name] for name in shares}, seed) == found
    assert split_of(patient, {name: 8 * part for name, part in SHARES.items()}, seed) == found


def test_known_values_stay_for_ever() -> None:
    """Held-out cases of servers depend on them: another hash would train on them."""
    thirds = {"a": 1, "b": 1, "c": 1}
    found = [split_of(f"patient {number}", thirds, 3) for number in range(24)]
    assert "".join(found) == "ccbaabccccaccacbbbccbcbc"


@pytest.mark.parametrize("seed", [0, 1, -7])
def test_shares_are_met_within_sampling_noise(seed: int) -> None:
    count = 20000
    found = [split_of(f"P{number:05d}", SHARES, seed) for number in range(count)]
    for name, share in SHARES.items():
        # four standard deviations of a binomial count
        noise = 4 * np.sqrt(count * share * (1 - share))
        assert abs(found.count(name) - count * share) < noise


def test_another_seed_is_another_split() -> None:
    halves = {"a": 1, "b": 1}
    same = sum(split_of(str(n), halves, 0) == split_of(str(n), halves, 1) for n in range(2000))
    assert 900 < same < 1100


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.0}, {"a": 1, "b": -1}, {"a": float("nan")}, {"a": float("inf")}]
)
def test_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(InputError):
        split_of("p", shares)


def pairs(names: list[str]) -> list[CasePair]:
    return [CasePair(name, Path(f"i/{name}.png"), Path(f"l/{name}.png")) for name in names]


NAMES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda pair: f"p{pair[0]}_{pair[1]}"),
    unique=True,
    min_size=1,
)


@given(old=NAMES, new=NAMES, seed=st.integers(0, 5))
def test_cases_never_move_and_patients_stay_together(
    old: list[str], new: list[str], seed: int
) -> None:
    pattern = patient_pattern(r"^(p\d+)_")
    before = plan_split(pairs(old), SHARES, pattern, seed)
    after = plan_split(pairs(sorted({*old, *new})), SHARES, pattern, seed)
    where = {case.pair.name: case.split for case in after}
    assert all(where[case.pair.name] == case.split for case in before)
    by_patient = {(case.patient, case.split) for case in after}
    assert len(by_patient) == len({case.pair.name.split("_")[0] for case in after})


def test_without_a_pattern_each_case_counts_as_a_patient() -> None:
    (case,) = plan_split(pairs(["p1_2"]), SHARES)
    assert case.patient is None
    assert case.split == split_of("p1_2", SHARES, 0)


def test_a_name_without_patient() -> None:
    with pytest.raises(InputError, match=r"other\.png: the patient pattern"):
        plan_split(pairs(["p1_2", "other"]), SHARES, patient_pattern(r"^(p\d+)_"))


@pytest.mark.parametrize(
    ("text", "problem"), [("(", "no regular expression"), ("a", "0 groups"), ("(a)(b)", "2 groups")]
)
def test_patterns_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        patient_pattern(text)


def dicom(folder: Path, **values: str) -> Path:
    write_series(folder, np.zeros((4, 4, 2), np.int16), np.diag([1.0, 1, 1, 1]), [0, 1])
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        for name, value in values.items():
            setattr(dataset, name, value)
        dataset.save_as(file)
    return folder


def test_the_patient_of_dicom_is_in_its_header(tmp_path: Path) -> None:
    pattern = patient_pattern("^(scan)")
    series = dicom(tmp_path / "scan1", PatientID="X 7")
    assert patient_of(series) == patient_of(series / "000.dcm") == "X 7"
    assert patient_of(series, pattern) == "X 7"
    issued = dicom(tmp_path / "scan2", PatientID="X 7", IssuerOfPatientID="Ward")
    assert patient_of(issued) == "Ward:X 7"


@pytest.mark.parametrize("patient", ["", "ANONYMOUS", " Anonymized "])
def test_anonymous_dicom_is_nobody(tmp_path: Path, patient: str) -> None:
    series = dicom(tmp_path / "scan1", PatientID=patient)
    assert patient_of(series) is None
    assert patient_of(series, patient_pattern(r"(\d)")) == "1"


def test_the_pattern_sees_the_file_name_alone(tmp_path: Path) -> None:
    pattern = patient_pattern(r"(\d+)")
    assert patient_of(tmp_path / "99" / "a12_3.png", pattern) == "12"
    assert patient_of(tmp_path / "99" / "a.png", pattern) is None
    assert patient_of(tmp_path / "12_3.png") is None
    assert patient_of(tmp_path / "b", patient_pattern("b(x)?")) is None


def source(folder: Path, names: list[str]) -> list[CasePair]:
    found = []
    for name in names:
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(folder / part / f"{name}.png")
        found.append(
            CasePair(name, folder / "images" / f"{name}.png", folder / "labels" / f"{name}.png")
        )
    return found


def test_copies_with_series_folders(tmp_path: Path) -> None:
    found = source(tmp_path / "in", ["a"])
    series = dicom(tmp_path / "in" / "images" / "b", PatientID="P")
    label = tmp_path / "in" / "labels" / "b.png"
    label.write_bytes(found[0].label.read_bytes())
    planned = plan_split([*found, CasePair("b", series, label)], {"train": 1})
    copy_split(planned, tmp_path / "out")
    out = tmp_path / "out" / "train"
    assert sorted(path.name for path in (out / "images").iterdir()) == ["a.png", "b"]
    assert len(list((out / "images" / "b").iterdir())) == 2
    # a copy: mending a label map of it must leave the source as it is
    assert not (out / "labels" / "a.png").samefile(found[0].label)
    assert (out / "labels" / "a.png").read_bytes() == found[0].label.read_bytes()


def test_never_writes_over_a_case_not_even_in_another_split(tmp_path: Path) -> None:
    found = source(tmp_path / "in", ["a", "b"])
    copy_split(plan_split(found[:1], {"train": 1}), tmp_path / "out")
    kept = tmp_path / "out" / "train" / "images" / "a.png"
    kept.write_bytes(b"mine")
    (tmp_path / "out" / "train" / "labels" / "a.png").unlink()
    with pytest.raises(InputError, match="1 case is there already"):
        copy_split(plan_split(found, {"val": 1}), tmp_path / "out")
    assert kept.read_bytes() == b"mine"
    assert not (tmp_path / "out" / "val").exists()


def test_refuses_before_it_copies(tmp_path: Path) -> None:
    found = source(tmp_path / "in", ["a"])
    with pytest.raises(InputError, match="within the folder of the cases"):
        copy_split(plan_split(found, {"train": 1}), tmp_path / "in" / "images" / "out")
    header = CasePair("h", tmp_path / "in" / "images" / "h.mhd", found[0].label)
    with pytest.raises(InputError, match="header only"):
        copy_split(plan_split([*found, header], {"train": 1}), tmp_path / "out")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="this is a file"):
        copy_split(plan_split(found, {"train": 1}), tmp_path / "file")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in (tmp_path / "in" / "images").iterdir()) == ["a.png"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source(tmp_path / "in", ["a"])

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out" / "a.png"))

    monkeypatch.setattr("shutil.copy2", full)
    with pytest.raises(InputError, match=r"a\.png: the cases cannot be copied \(No space left"):
        copy_split(plan_split(found, {"train": 1}), tmp_path / "out")
