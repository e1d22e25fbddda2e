"""`segment` around a segmenter that thresholds: files, names, errors, exit codes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from support.bundles import bundle_of
from support.dicom_series import write_series

from esp_medsam_app import cli
from esp_medsam_app.commands import runtime
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError, OtherModalityError, WeightsError
from esp_medsam_app.modalities import Intensity, Modality

BRIGHT = Modality(name="bright", title="", description="", dimension=3, labels={"bright": 1})


class Threshold:
    """Label 1 above the mean of the image."""

    bundle = bundle_of(BRIGHT)
    device = torch.device("cpu")

    def check_modality(self, image: MedicalImage, modality: str, remedy: str) -> None:
        if image.voxels.max() == 12:
            raise OtherModalityError("this looks dim", path=image.path, remedy=remedy)

    def segment(self, image: MedicalImage, modality: str, on_slice: object) -> NDArray[np.uint8]:
        if not image.voxels.any():
            raise InputError("nothing to see", path=image.path)
        if image.voxels.max() == 14:
            raise KeyboardInterrupt
        if image.voxels.max() == 13:
            raise ZeroDivisionError("a defect")
        grey = image.voxels.mean(axis=-1) if image.is_rgb else image.voxels
        return (grey > grey.mean()).astype(np.uint8)


@pytest.fixture(autouse=True)
def thresholding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "make_segmenter", lambda *_, **__: Threshold())


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def segment(*paths: Path, output: Path, extra: tuple[str, ...] = ()) -> int:
    return run("segment", *paths, "--modality", "bright", "--output", output, *extra)


def picture(path: Path, value: int = 200) -> Path:
    array = np.zeros((20, 30), np.uint8)
    array[5:10, 6:20] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def volume(path: Path) -> Path:
    array = np.zeros((9, 8, 5), np.int16)
    array[2:5, 3:6, 1:3] = 100
    affine = np.array([[0, 2.0, 0, -7], [-1.5, 0, 0, 3], [0, 0, 4, 9], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_label_maps_lie_on_their_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = volume(tmp_path / "scan.07.nii.gz")
    assert segment(source, picture(tmp_path / "photo.png"), output=out) == 0
    labels, image = nib.load(out / "scan.07_seg.nii.gz"), nib.load(source)
    assert np.array_equal(labels.affine, image.affine)
    assert np.array_equal(np.asanyarray(labels.dataobj), np.asanyarray(image.dataobj) > 0)
    flat = np.asarray(Image.open(out / "photo_seg.png"))
    assert np.array_equal(flat, np.asarray(Image.open(tmp_path / "photo.png")) > 0)
    assert sorted(path.name for path in out.iterdir()) == ["photo_seg.png", "scan.07_seg.nii.gz"]


def test_what_looks_like_another_modality_is_left_out_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, fit = picture(tmp_path / "other.png", value=12), picture(tmp_path / "fit.png")
    assert segment(other, fit, output=tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fit_seg.png"]
    told = " ".join(capsys.readouterr().err.split())
    assert "this looks dim. Give --modality auto, or --any-image" in told
    assert segment(other, output=tmp_path / "out", extra=("--any-image",)) == 0
    assert (tmp_path / "out" / "other_seg.png").is_file()


def test_a_ct_that_is_not_in_hounsfield_units_is_left_out_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change = {"dicom_modalities": ("CT",), "intensity": Intensity(kind="window", low=0, high=255)}
    monkeypatch.setattr(Threshold, "bundle", bundle_of(BRIGHT.model_copy(update=change)))
    units = np.random.default_rng(0).normal(40, 20, (9, 8, 5)).astype(np.int16)
    for name, voxels in (("units", units), ("raw", units + 1024)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    files = [tmp_path / f"{name}.nii.gz" for name in ("units", "raw")]
    assert segment(*files, output=tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["units_seg.nii.gz"]
    told = " ".join(capsys.readouterr().err.split())
    assert "raw.nii.gz: its values are not Hounsfield units, which bright needs" in told
    assert "give --any-image" in told
    assert segment(files[1], output=tmp_path / "out", extra=("--any-image",)) == 0


def test_what_is_to_be_known_of_an_image_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheared = np.array([[1.0, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    voxels = np.arange(9 * 8 * 5, dtype=np.int16).reshape(9, 8, 5)
    nib.save(nib.Nifti1Image(voxels, sheared), tmp_path / "sheared.nii.gz")
    assert segment(tmp_path / "sheared.nii.gz", output=tmp_path / "out") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "sheared.nii.gz: ITK, and so 3D Slicer, refuses its header" in told


def test_dicom_series_folder(tmp_path: Path) -> None:
    voxels = np.zeros((9, 8, 5), np.int16)
    voxels[2:5, 3:6, 1:3] = 100
    write_series(tmp_path / "series", voxels, np.diag([-1.0, -1.0, 3.0, 1.0]), [0, 1, 2, 3, 4])
    assert segment(tmp_path / "series", output=tmp_path / "out") == 0
    labels = nib.load(tmp_path / "out" / "series_seg.nii.gz")
    assert np.array_equal(np.asanyarray(labels.dataobj), voxels > 0)


def test_folder_of_images_and_its_own_outputs(tmp_path: Path) -> None:
    """A second run over the same folder does not take the first one's results for images."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("left alone")
    for _ in range(2):
        assert segment(tmp_path, output=tmp_path, extra=("--overlay",)) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "a.png", "a_overlay.png", "a_seg.png", "b.png", "b_overlay.png", "b_seg.png", "notes.txt",
    ]  # fmt: skip


def test_overlay_shows_the_label(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png", value=100)
    assert segment(source, output=tmp_path / "out", extra=("--overlay",)) == 0
    overlay = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png").convert("RGB")).astype(int)
    coloured = np.abs(overlay[..., 0] - overlay[..., 2]) > 20
    assert 0.05 < coloured.mean() < 0.5


def test_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "x" / "a.png"), picture(tmp_path / "y" / "a.png")
    assert segment(first, second, output=tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "x_a_seg.png",
        "y_a_seg.png",
    ]


def test_one_failure_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = picture(tmp_path / "black.png", value=0)
    defect = picture(tmp_path / "defect.png", value=13)
    good = picture(tmp_path / "good.png")
    absent = tmp_path / "absent.nii"
    assert segment(absent, black, defect, good, output=tmp_path / "out") == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_seg.png"]
    shown = capsys.readouterr()
    assert f"{absent}: there is no such file or folder" in shown.err
    assert f"{black}: nothing to see" in shown.err
    assert "failed unexpectedly (ZeroDivisionError: a defect)" in shown.err
    assert "1 of 4 done, 3 failed" in shown.out


def test_control_c_leaves_what_is_done(tmp_path: Path) -> None:
    good, stopped = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", value=14)
    assert segment(good, stopped, picture(tmp_path / "c.png"), output=tmp_path / "out") == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_seg.png"]


def test_paths_the_system_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    iterdir = Path.iterdir

    def forbidden(path: Path) -> Iterator[Path]:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    endless = tmp_path / ("x" * 300 + ".png")
    good = picture(tmp_path / "good.png")
    assert segment(closed, endless, good, output=tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 2
    assert f"{closed}: cannot be read (Permission denied)" in shown.err
    assert f"{endless}: cannot be read (File name too long)" in shown.err
    assert "1 of 3 done, 2 failed" in shown.out


def test_output_never_replaces_an_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, precious = picture(tmp_path / "a.png"), picture(tmp_path / "a_seg.png")
    before = precious.read_bytes()
    assert segment(source, precious, output=tmp_path) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert precious.read_bytes() == before


def test_label_map_on_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esp_medsam_app.data.writing.write_label_map", full)
    assert segment(picture(tmp_path / "a.png"), output=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a_seg.png: the label map cannot be written (No space left on device)" in error


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_no_terminal_can_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture(tmp_path / os.fsdecode(b"\xff.png"))
    assert segment(source, tmp_path / os.fsdecode(b"\xfe.png"), output=tmp_path / "out") == 2
    shown = capsys.readouterr()
    assert r"\udcff_seg.png: bright" in shown.out
    assert r"\udcfe.png: there is no such file" in shown.err


def test_errors_take_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise WeightsError("a library says:\nthis\n  and that", path="x.safetensors", remedy="Do")

    monkeypatch.setattr(runtime, "make_segmenter", fail)
    assert run("segment", "a.png", "-m", "bright", "-o", os.curdir) == 2
    expected = "Error: x.safetensors: a library says: this   and that. Do\n"
    assert capsys.readouterr().err == expected


def test_existing_results_are_kept_on_request(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    out = tmp_path / "out"
    assert segment(source, output=out) == 0
    (out / "a_seg.png").write_bytes(b"corrected by hand")
    assert segment(source, output=out, extra=("--no-overwrite",)) == 0
    assert (out / "a_seg.png").read_bytes() == b"corrected by hand"
    assert segment(source, output=out) == 0
    assert (out / "a_seg.png").read_bytes() != b"corrected by hand"


def test_unknown_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png")
    assert run("segment", source, "--modality", "dark", "--output", tmp_path / "out") == 2
    assert "no modality 'dark'" in capsys.readouterr().err


def test_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "a.png")
    assert segment(source, output=source) == 2
    error = capsys.readouterr().err
    assert "cannot be written to" in error
    assert "Traceback" not in error


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in ("segment", "evaluate", "train", "serve", "weights", "sample-data", "doctor"):
        assert command in shown


def test_missing_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_on_a_gpu_the_next_image_is_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same files, same errors, in the same order."""
    for index, value in enumerate((200, 0, 100, 13, 50)):
        picture(tmp_path / "in" / f"{index}.png", value)
    told = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(Threshold, "device", torch.device(device))
        out = tmp_path / device
        assert segment(tmp_path / "in", output=out) == 2
        printed = capsys.readouterr().out.replace(str(out), "OUT")
        told[device] = [line.rpartition(",")[0] or line for line in printed.splitlines()]
        assert sorted(path.name for path in out.iterdir()) == [
            "0_seg.png", "2_seg.png", "4_seg.png",
        ]  # fmt: skip
    assert told["cpu"] == told["cuda"]
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
