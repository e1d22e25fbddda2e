"""The sample data folder: complete, repeatable, harmless to what lies beside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import catalogue
from esp_medsam_app.samples import build_sample_data, builder, description, sample_cases, to_json
from esp_medsam_app.samples.packaged import PACKAGED_IMAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    data = build_sample_data(folder)
    assert data.left_out == ()
    assert len(data.cases) == len(sample_cases())
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "samples"))


def test_every_file_of_the_manifest_is_there_and_no_other(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    found = {
        path.relative_to(built).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in built.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found == manifest["files"]
    for case in manifest["cases"]:
        assert case["origin"]
        assert case["licence"]
        assert case["modality"] in catalogue()
        for entry in ("study", "reference"):
            assert case[entry] is None or case[entry] in found
        assert case["dicom"] is None or list((built / case["dicom"]).glob("*.dcm"))
        assert case["study"] or case["dicom"]


def test_second_build_writes_nothing(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert build_sample_data(copy).written == 0
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_build_elsewhere_has_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build_sample_data(tmp_path)
    for path in built.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(built)).read_bytes() == path.read_bytes(), path


def test_damaged_and_missing_files_are_restored_and_nothing_else_is_touched(copy: Path) -> None:
    whole = (copy / "studies/retina.jpg").read_bytes()
    (copy / "studies/retina.jpg").write_bytes(whole[:100])
    (copy / "references/nuclei_phantom.png").unlink()
    label = copy / "studies/labels/final/retina.nii.gz"
    label.parent.mkdir(parents=True)
    label.write_bytes(b"a user's work")
    assert build_sample_data(copy).written == 2
    assert (copy / "studies/retina.jpg").read_bytes() == whole
    assert (copy / "references/nuclei_phantom.png").is_file()
    assert label.read_bytes() == b"a user's work"
    assert not list(copy.rglob("*.part"))


def test_unreadable_manifest_is_replaced(copy: Path) -> None:
    (copy / "manifest.json").write_text("[1, 2", encoding="utf-8")
    assert build_sample_data(copy).written == 1
    assert build_sample_data(copy).written == 0


def test_an_image_of_another_release_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good, other = PACKAGED_IMAGES[0], PACKAGED_IMAGES[1]
    changed = type(other)(**{**vars(other), "sha256": "0" * 64})
    missing = type(other)(**{**vars(PACKAGED_IMAGES[2]), "package": "no_such_package"})
    monkeypatch.setattr(builder, "PACKAGED_IMAGES", (good, changed, missing))
    data = build_sample_data(tmp_path)
    assert {case.name for case in data.cases} >= {good.case, "abdomen_phantom"}
    assert not {case.name for case in data.cases} & {changed.case, missing.case}
    assert [reason.split(":")[0] for reason in data.left_out] == [changed.case, missing.case]
    assert "scikit-image" in data.left_out[0]


def test_output_that_is_a_file_is_an_input_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        build_sample_data(blocked)
    assert blocked.read_text() == ""


def test_committed_manifest_is_what_the_builder_writes() -> None:
    """After a change of the cases: make manifest."""
    assert (ROOT / "sample_data/manifest.json").read_bytes() == to_json(description())


def test_readme_names_every_case_with_its_modality_and_licence() -> None:
    rows = [
        line
        for line in (ROOT / "sample_data/README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    for case in sample_cases():
        (row,) = [line for line in rows if line.startswith(f"| `{case.name}` |")]
        assert f"`{case.modality}`" in row
        assert case.licence.split(",")[0].lower() in row.lower()
