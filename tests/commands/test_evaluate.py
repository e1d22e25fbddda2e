"""`evaluate` around a segmenter that reads its answer from the image: tables, JSON, errors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.bundles import bundle_of
from support.dicom_series import write_series

from esp_medsam_app import cli
from esp_medsam_app.commands import evaluate, runtime
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import OtherModalityError, OutOfMemoryError
from esp_medsam_app.modalities import Modality

SIDES = Modality(
    name="sides", title="", description="", dimension=2, labels={"left": 1, "right": 2}
)


class Reader:
    """The label is a tenth of the grey value, rounded down."""

    bundle = bundle_of(SIDES)

    def check_modality(self, image: MedicalImage, modality: str, remedy: str) -> None:
        if image.voxels.max() == 99:
            raise OtherModalityError("this looks like something else", path=image.path)

    def segment(self, image: MedicalImage, modality: str, on_slice: Any) -> NDArray[np.uint8]:
        if image.voxels.max() == 255:
            raise OutOfMemoryError("too little memory")
        if image.voxels.max() == 254:
            raise KeyboardInterrupt
        on_slice(1, 1)
        return (image.voxels // 10).astype(np.uint8)


@pytest.fixture(autouse=True)
def reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "make_segmenter", lambda *_, **__: Reader())
    monkeypatch.setenv("COLUMNS", "100")


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "--modality", "sides", *map(str, arguments)])
    return int(caught.value.code or 0)


def save(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nib.save(nib.Nifti1Image(array, np.diag([0.5, 2.0, 3.0, 1.0])), path)


def labels_of_picture() -> NDArray[np.uint8]:
    labels = np.zeros((12, 16), np.uint8)
    labels[3:9, 2:6], labels[3:9, 10:14] = 1, 2
    return labels


def case(folder: Path, stem: str, found: NDArray[np.uint8], suffix: str = "png") -> None:
    """A case whose reference is `labels_of_picture` and whose prediction will be `found`."""
    save(folder / "images" / f"{stem}.{suffix}", found * 10)
    save(folder / "labels" / f"{stem}.{suffix}", labels_of_picture())


def half() -> NDArray[np.uint8]:
    """Left: the upper half of it. Right: all of it."""
    found = labels_of_picture()
    found[6:, :8] = 0
    return found


def only_left() -> NDArray[np.uint8]:
    found = labels_of_picture()
    found[found == 2] = 0
    return found


def read(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return content


def row(printed: str, *words: str) -> str:
    table = [line for line in printed.splitlines() if line.startswith("│")]
    rows = [line for line in table if all(word in line for word in words)]
    assert len(rows) == 1
    return rows[0]


def test_prints_and_writes_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stem, found in (("a", labels_of_picture()), ("b", half()), ("c", only_left())):
        case(tmp_path / "data", stem, found)
    report = tmp_path / "new" / "report.json"
    assert run("--data", tmp_path / "data", "--json", report) == 0
    content = read(report)
    # left: 1, 2/3 (12 of 24 pixels), 1; right: 1, 1, 0
    left, right = [1, 2 / 3, 1], [1, 1, 0]
    cases = [(a + b) / 2 for a, b in zip(left, right, strict=True)]
    dice = content["dice"]
    assert dice["mean"] == pytest.approx(np.mean(cases))
    assert dice["std"] == pytest.approx(np.std(cases, ddof=1))
    low, high = dice["ci95"]
    assert min(cases) <= low < dice["mean"] < high <= max(cases)
    assert dice["per_label"]["left"]["mean"] == pytest.approx(np.mean(left))
    assert dice["per_label"]["right"]["mean"] == pytest.approx(np.mean(right))
    assert content["iou"]["per_label"]["left"]["mean"] == pytest.approx(np.mean([1, 0.5, 1]))
    # the lower three rows of the left box were not found
    assert content["hd95"]["per_label"]["left"]["mean"] == pytest.approx(3 / 3)
    assert content["hd95"]["per_label"]["right"] == {
        "mean": 0, "std": 0, "ci95": [0, 0], "cases": 2, "unit": "px", "missed": 1, "absent": 0,
    }  # fmt: skip
    assert [entry["name"] for entry in content["per_case"]] == ["a", "b", "c"]
    assert [entry["dice"] for entry in content["per_case"]] == pytest.approx(cases)
    assert content["per_case"][2]["per_label"]["right"]["hd95"] is None
    assert (content["modality"], content["cases"], content["failed"]) == ("sides", 3, [])
    printed = capsys.readouterr().out
    assert "sides: 3 cases" in printed
    for value in (dice["mean"], dice["std"], low, high):
        assert f"{value:.4f}" in row(printed, "Dice", "mean of labels")
    assert f"{np.mean(right):.4f}" in row(printed, "Dice", "right")
    assert row(printed, "HD95 (px)", "right").rstrip("│ ").endswith("2")
    assert "right: in only one of reference and prediction in 1 case " in printed


def test_images_of_something_else_are_marked_unless_they_are_refused(tmp_path: Path) -> None:
    case(tmp_path / "data", "a", labels_of_picture())
    for stem, value in (("marked", 19), ("empty", 9), ("refused", 99)):
        save(tmp_path / "others" / f"{stem}.png", np.full((12, 16), value, np.uint8))
    report = tmp_path / "report.json"
    others = ("--absent", tmp_path / "others")
    assert run("--data", tmp_path / "data", *others, "--json", report) == 0
    beside = read(report)["beside"]
    assert (beside["slices"], beside["marked"]) == (3, 1)
    run("--data", tmp_path / "data", *others, "--any-image", "--json", report)
    assert read(report)["beside"]["marked"] == 2


def test_distances_of_volumes_are_in_mm(tmp_path: Path) -> None:
    """Moved by one voxel along each axis in turn; the grid's spacing is 0.5, 2 and 3 mm."""
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[3:7, 3:7, 3:7], labels[8, 8, 8] = 1, 2
    for axis in range(3):
        save(tmp_path / "images" / f"{axis}.nii.gz", np.roll(labels, 1, axis) * 10)
        save(tmp_path / "labels" / f"{axis}.nii.gz", labels)
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 0
    content = read(tmp_path / "report.json")
    assert content["hd95"]["unit"] == "mm"
    found = [entry["per_label"]["left"]["hd95"] for entry in content["per_case"]]
    assert found == pytest.approx([0.5, 2, 3])


def test_dicom_series_folder_as_image(tmp_path: Path) -> None:
    labels = np.zeros((9, 8, 5), np.int16)
    labels[2:5, 3:6, 1:3] = 1
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    write_series(tmp_path / "images" / "scan.01", labels * 10, affine, [4, 2, 3, 0, 1])
    (tmp_path / "labels").mkdir()
    label_map = nib.Nifti1Image(labels.astype(np.uint8), affine)
    nib.save(label_map, tmp_path / "labels" / "scan.01.nii.gz")
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 0
    content = read(tmp_path / "report.json")
    assert (content["per_case"][0]["name"], content["dice"]["mean"]) == ("scan.01", 1)
    assert content["dice"]["per_label"]["right"]["mean"] == 1
    assert content["hd95"]["per_label"]["right"]["absent"] == 1


def test_a_single_case_has_no_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case(tmp_path, "a", half())
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 0
    assert read(tmp_path / "report.json")["dice"]["std"] is None
    assert "sides: 1 case" in capsys.readouterr().out


def test_predictions_are_kept(tmp_path: Path) -> None:
    case(tmp_path / "x", "a", half())
    case(tmp_path / "y", "a", only_left())
    out = tmp_path / "out"
    assert run("--data", tmp_path / "x", "--data", tmp_path / "y", "--predictions", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["x_a.png", "y_a.png"]
    assert np.array_equal(np.asarray(Image.open(out / "x_a.png")), half())
    assert np.array_equal(np.asarray(Image.open(out / "y_a.png")), only_left())


@pytest.mark.parametrize("part", ["images", "labels"])
def test_predictions_never_replace_the_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    case(tmp_path, "a", half())
    before = (tmp_path / part / "a.png").read_bytes()
    assert run("--data", tmp_path, "--predictions", tmp_path / "labels" / ".." / part) == 2
    assert "would replace files of the cases" in capsys.readouterr().err
    assert (tmp_path / part / "a.png").read_bytes() == before


def test_predictions_on_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esp_medsam_app.data.writing.write_label_map", full)
    case(tmp_path / "data", "a", half())
    assert run("--data", tmp_path / "data", "--predictions", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a.png: the label map cannot be written (No space left on device)" in error
    assert len(error.strip().splitlines()) == 1


def test_limit_takes_the_first_by_name(tmp_path: Path) -> None:
    for stem in "cab":
        case(tmp_path, stem, half())
    assert run("--data", tmp_path, "--limit", "2", "--json", tmp_path / "report.json") == 0
    names = [entry["name"] for entry in read(tmp_path / "report.json")["per_case"]]
    assert names == ["a", "b"]


def test_one_failure_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path, "a", half())
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    case(tmp_path, "b", half())
    save(tmp_path / "images" / "b.png", np.full((12, 16), 255, np.uint8))
    case(tmp_path, "c", labels_of_picture())
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 2
    content = read(tmp_path / "report.json")
    assert (content["cases"], content["failed"]) == (1, ["a", "b"])
    assert content["dice"]["mean"] == 1
    shown = capsys.readouterr()
    assert "2 cases failed and are in no figure" in shown.out
    lines = shown.err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{tmp_path / 'images' / 'a.png'}: not a picture")
    assert lines[1].startswith(f"{tmp_path / 'images' / 'b.png'}: too little memory")


def test_pictures_and_volumes_have_no_common_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path, "a", half())
    volume = np.zeros((10, 10, 4), np.uint8)
    volume[2:5, 2:5, 1:3] = 1
    save(tmp_path / "images" / "b.nii.gz", volume * 10)
    save(tmp_path / "labels" / "b.nii.gz", volume)
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 2
    assert read(tmp_path / "report.json")["failed"] == ["b"]
    assert "in mm, those of the cases before in px" in capsys.readouterr().err


def test_no_case_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case(tmp_path, "a", half())
    (tmp_path / "images" / "a.png").write_bytes(b"")
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 2
    assert "none of the cases could be evaluated" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()


def test_a_wrong_reference_is_told_before_any_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case(tmp_path, "a", half())
    case(tmp_path, "b", half())
    save(tmp_path / "labels" / "b.png", np.full((12, 16), 7, np.uint8))
    monkeypatch.setattr(Reader, "segment", lambda *_, **__: pytest.fail("inference"))
    assert run("--data", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {tmp_path / 'labels' / 'b.png'}: ")
    assert "no label for: 7" in error
    assert "1 = left, 2 = right" in error


def test_report_file_that_is_a_folder_is_told_before_any_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case(tmp_path, "a", half())
    monkeypatch.setattr(Reader, "segment", lambda *_, **__: pytest.fail("inference"))
    assert run("--data", tmp_path, "--json", tmp_path) == 2
    assert "this is a folder" in capsys.readouterr().err
    assert run("--data", tmp_path, "--json", tmp_path / "images" / "a.png" / "r.json") == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_nothing_but_results_on_the_screen(tmp_path: Path) -> None:
    """Libraries' warnings are not for users."""
    case(tmp_path, "a", half())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run("--data", tmp_path) == 0
    assert [str(warning.message) for warning in caught] == []


def test_unknown_modality_names_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(tmp_path, "a", half())
    assert run("--data", tmp_path, "--modality", "tops") == 2
    error = capsys.readouterr().err
    assert "no modality 'tops'" in error
    assert "sides" in error


def test_folder_that_may_not_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case(tmp_path, "a", half())

    def forbidden(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert run("--data", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'images'}: the folder cannot be read (Permission denied)" in error


def test_control_c(tmp_path: Path) -> None:
    case(tmp_path, "a", half())
    save(tmp_path / "images" / "a.png", np.full((12, 16), 254, np.uint8))
    assert run("--data", tmp_path, "--json", tmp_path / "report.json") == 130
    assert not (tmp_path / "report.json").exists()


def test_table_of_a_single_label_has_no_rows_for_labels(tmp_path: Path) -> None:
    from esp_medsam_app.evaluation.metrics import LabelScore
    from esp_medsam_app.evaluation.report import CaseScore, EvaluationReport

    score = LabelScore(0.5, 1 / 3, None, 4, 0)
    report = EvaluationReport("one", ("blob",), (CaseScore("a", {"blob": score}, 0.1),), "px")
    table = evaluate.report_table(report)
    assert list(table.columns[0].cells) == ["Dice", "IoU", "HD95 (px)"]
    assert list(table.columns[1].cells) == ["blob"] * 3
    assert list(table.columns[2].cells) == ["0.5000", "0.3333", "-"]
    assert list(table.columns[5].cells) == ["1", "1", "0"]
