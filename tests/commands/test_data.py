"""`data check` and `data split` from the command line: output, exit codes, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from esp_medsam_app import cli
from esp_medsam_app.commands.data import parse_shares
from esp_medsam_app.errors import InputError


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", *map(str, arguments)])
    return int(caught.value.code or 0)


def check(*arguments: str | Path) -> int:
    return run("check", "--modality", "ct_liver", *arguments)


def split(*arguments: str | Path) -> int:
    return run("split", "--modality", "ct_liver", *arguments)


def picture(seed: int) -> NDArray[np.uint8]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(48, 48)), 3)
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def case(folder: Path, name: str, seed: int, value: int = 1) -> None:
    labels = np.zeros((48, 48), np.uint8)
    labels[10:30, 10:34] = value
    for part, array in (("images", picture(seed)), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / part / f"{name}.png")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- check


def test_clean_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, part in enumerate(["train", "train", "val", "test", "unseen"]):
        case(tmp_path / part, f"c{seed}", seed)
    options = [str(word) for part in ("train", "val", "test", "unseen")
               for word in (f"--{part}", tmp_path / part)]  # fmt: skip
    assert check(*options) == 0
    printed = capsys.readouterr().out
    assert "ct_liver: 5 whole cases" in printed
    rows = [line.strip("│").split("│") for line in printed.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert ["train", "any", "2", "2", ""] in cells
    assert ["", "liver", "2", "2", "20.83%"] in cells
    assert cells[-2:] == [["unseen", "any", "1", "1", ""], ["", "liver", "1", "1", "20.83%"]]
    assert printed.rstrip().endswith("0 errors, 0 warnings")


def test_errors_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case(tmp_path / "a", "one", 0)
    case(tmp_path / "a", "two", 1, value=3)
    case(tmp_path / "b", "other", 0)
    report = tmp_path / "new" / "report.json"
    options = ("--train", tmp_path / "a", "--test", tmp_path / "b", "--json", report)
    assert check(*options) == 2
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    (label,) = [line for line in lines if "no label for: 3" in line]
    assert label.startswith(f"Error: train: {tmp_path / 'a' / 'labels' / 'two.png'}: ")
    assert label.endswith("Use 0 for background and 1 = liver")
    (leak,) = [line for line in lines if "the very same image" in line]
    assert leak.startswith(f"Error: test: {tmp_path / 'b' / 'images' / 'other.png'}: ")
    assert "2 errors, 0 warnings" in lines
    content = json.loads(report.read_text())
    assert content["errors"] == 2
    assert [finding["kind"] for finding in content["findings"]] == ["label values", "same image"]


def test_warnings_alone_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(6):
        case(tmp_path, str(seed), seed, value=int(seed == 0))
    assert check("--train", tmp_path, "--json", tmp_path / "report.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("marks nothing" in line for line in lines) == 3
    assert "Warning: train: 2 more of this kind (empty label map); --json lists all" in lines
    assert "0 errors, 5 warnings" in lines
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == 5


def test_patients_by_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case(tmp_path / "a", "p1_left", 0)
    case(tmp_path / "b", "p1_right", 1)
    options = ("--train", tmp_path / "a", "--val", tmp_path / "b")
    assert check(*options) == 0
    assert check(*options, "--patient-pattern", r"^(p\d+)_") == 2
    assert "patient p1 is in 'train' too" in capsys.readouterr().out


def test_what_is_told_before_any_case_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case(tmp_path, "a", 0)
    monkeypatch.setattr(
        "esp_medsam_app.evaluation.data_check.check.measure_case",
        lambda *_: pytest.fail("a case was read"),
    )
    for options, problem in (
        (("--json", tmp_path), "this is a folder"),
        (("--patient-pattern", "("), "no regular expression"),
        (("--modality", "tops"), "no modality 'tops'"),
        (("--test", tmp_path), "given twice"),
    ):
        assert check("--train", tmp_path, *options) == 2
        assert problem in capsys.readouterr().err


# ---- split


def patients(folder: Path, count: int = 20) -> Path:
    for number in range(count):
        for side in ("left", "right"):
            case(folder, f"p{number:02d}_{side}", number)
    return folder


HALVES = ("--share", "train=1", "--share", "val=1", "--patient-pattern", r"^(p\d+)_")


def test_split_by_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = patients(tmp_path / "in"), tmp_path / "new" / "out"
    assert split(source, output, *HALVES) == 0
    assert names(output) == ["train", "val"]
    found = {name: names(output / name / "images") for name in ("train", "val")}
    assert sorted(found["train"] + found["val"]) == names(source / "images")
    for name, images in found.items():
        assert names(output / name / "labels") == images
        assert len(images) == 2 * len({image.split("_")[0] for image in images})
        one = images[0]
        for part in ("images", "labels"):
            copied = (output / name / part / one).read_bytes()
            assert copied == (source / part / one).read_bytes()
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    counts = {row[1].strip(): (int(row[2]), int(row[3])) for row in rows}
    assert counts == {name: (len(images), len(images) // 2) for name, images in found.items()}


def test_a_split_passes_the_check(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for seed in range(12):
        case(source, f"p{seed}_x", seed)
    assert split(source, output, *HALVES) == 0
    assert check("--train", output / "train", "--val", output / "val", *HALVES[-2:]) == 0


def test_split_of_added_cases_refuses_and_a_new_output_moves_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = patients(tmp_path / "in", 8)
    assert split(source, tmp_path / "old", *HALVES) == 0
    patients(source, 12)
    assert split(source, tmp_path / "old", *HALVES) == 2
    assert "16 cases are there already" in capsys.readouterr().err
    assert len(names(tmp_path / "old" / "train" / "images")) < 16
    assert split(source, tmp_path / "new", *HALVES) == 0
    for name in ("train", "val"):
        old = names(tmp_path / "old" / name / "images")
        assert set(old) <= set(names(tmp_path / "new" / name / "images"))


def test_split_tells_unknown_patients_and_empty_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path / "in", "a", 0)
    shares = ("--share", "train=1", "--share", "val=0.000001")
    assert split(tmp_path / "in", tmp_path / "out", *shares) == 0
    shown = capsys.readouterr()
    assert "Patient unknown in 1 case: each counts as one of its own" in shown.out
    assert "no case came to 'val'" in shown.err


def test_split_copies_nothing_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path / "in", "p1_a", 0)
    case(tmp_path / "in", "p2_a", 1, value=7)
    assert split(tmp_path / "in", tmp_path / "out", *HALVES) == 2
    assert "no label for: 7" in capsys.readouterr().err
    (tmp_path / "in" / "labels" / "p2_a.png").unlink()
    assert split(tmp_path / "in", tmp_path / "out", *HALVES) == 2
    assert "no partner" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [["train"], ["train="], ["=1"], ["../x=1"], ["a=x"], ["a=1", "a=2"], [".hidden=1"]],
)
def test_shares_that_are_none(options: list[str]) -> None:
    with pytest.raises(InputError, match="--share"):
        parse_shares(options)


def test_shares() -> None:
    assert parse_shares(["train=0.8", "hold-out_2=20"]) == {"train": 0.8, "hold-out_2": 20}
