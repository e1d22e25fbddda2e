"""The inference task: files and JSON for the viewers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from support.fake_server import AFFINE, ORGANS, SPOTS, FakeSegmenters

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import EspMedSamError, InputError, OutOfMemoryError
from esp_medsam_app.modalities import Intensity
from esp_medsam_app.server.infer_task import AddedInferTask, EspMedSamInferTask

Run = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def run(studies: Path, segmenters: FakeSegmenters, temporary: Path) -> Run:
    def run(**request: Any) -> tuple[Path, dict[str, Any]]:
        request.setdefault("image", str(studies / "case.nii.gz"))
        modality = SPOTS if request["image"].endswith(".png") else ORGANS
        file, answer = EspMedSamInferTask(modality, segmenters)(request)
        return Path(file), answer

    return run


def expected_labels(organs: np.ndarray) -> np.ndarray:
    return np.where(organs % 100 == 0, organs // 100, 0)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", None])
def test_nifti_has_the_image_s_grid(run: Run, organs: np.ndarray, suffix: str | None) -> None:
    file, _ = run(result_extension=suffix)
    assert file.name.endswith(suffix or ".nii.gz")
    written = nib.load(file)
    assert np.array_equal(np.asarray(written.dataobj), expected_labels(organs))
    assert np.array_equal(written.affine, AFFINE)


@pytest.mark.parametrize(
    ("compress", "encoding"), [(True, b"gzip"), (False, b"raw"), (None, b"raw")]
)
def test_nrrd_has_the_image_s_grid(
    run: Run, studies: Path, organs: np.ndarray, compress: bool | None, encoding: bytes
) -> None:
    file, _ = run(result_extension=".nrrd", result_compress=compress)
    header = file.read_bytes().split(b"\n\n")[0]
    assert b"encoding: " + encoding in header
    assert b"type: unsigned char" in header
    written, image = sitk.ReadImage(str(file)), sitk.ReadImage(str(studies / "case.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(written), expected_labels(organs).T)
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(written, get)(), getattr(image, get)()), get


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_dtype_is_honoured(run: Run, dtype: str) -> None:
    file, _ = run(result_dtype=dtype)
    assert nib.load(file).get_data_dtype() == dtype


def test_an_empty_mask_is_still_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 7, np.int16), AFFINE), path)
    file, answer = run(image=str(path), result_extension=".nrrd")
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(file))).max() == 0
    assert answer["label_names"] == {"liver": 1, "spleen": 2}


def test_pictures_give_png_by_default(run: Run, studies: Path) -> None:
    file, _ = run(image=str(studies / "photo.png"))
    picture = np.asarray(Image.open(studies / "photo.png"))
    assert file.suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(file)), (picture == 100).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_a_jpeg_s_mask_is_no_jpeg(
    suffix: str, studies: Path, segmenters: FakeSegmenters, temporary: Path
) -> None:
    """It would change the labels at every edge."""
    path = studies / f"lossy{suffix}"
    Image.open(studies / "photo.png").save(path, format="JPEG", quality=50)
    expected = segmenters.segment(read_image(path), "spots")
    assert len(np.unique(expected)) == 2
    file, _ = EspMedSamInferTask(SPOTS, segmenters)({"image": str(path)})
    assert Path(file).suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(file)).T, expected)


def test_pictures_give_nrrd_for_slicer(run: Run, studies: Path) -> None:
    file, _ = run(image=str(studies / "photo.png"), result_extension=".nrrd")
    picture = np.asarray(Image.open(studies / "photo.png"))
    written = np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))
    assert np.array_equal(written, picture == 100)


def test_png_of_a_volume_is_refused_before_the_work(run: Run, segmenters: FakeSegmenters) -> None:
    with pytest.raises(InputError, match="result_extension"):
        run(result_extension=".png")
    assert segmenters.calls == 0


def test_the_answer_is_what_viewers_read(run: Run) -> None:
    _, answer = run()
    answer = json.loads(json.dumps(answer))
    assert answer["label_names"] == {"liver": 1, "spleen": 2}
    assert answer["centroids"] == {}
    latencies = answer["latencies"]
    assert set(latencies) == {"pre", "infer", "post", "write", "total"}
    parts = sum(value for step, value in latencies.items() if step != "total")
    assert latencies["total"] == pytest.approx(parts, abs=0.005)


def test_label_prompt_keeps_values(run: Run, organs: np.ndarray) -> None:
    file, answer = run(label_prompt=[2])
    voxels = np.asarray(nib.load(file).dataobj)
    assert np.array_equal(voxels, np.where(organs == 200, 2, 0))
    # all names: Slicer counts labels by their place in this list
    assert answer["label_names"] == {"liver": 1, "spleen": 2}


def test_device_is_handed_on(run: Run, segmenters: FakeSegmenters) -> None:
    run(device="cpu")
    run()
    assert segmenters.devices == ["cpu", "auto"]


@pytest.mark.parametrize(("level", "lines"), [("INFO", 1), ("warning", 0)])
def test_logging_silences_one_request(
    run: Run, caplog: pytest.LogCaptureFixture, level: str, lines: int
) -> None:
    with caplog.at_level("INFO", logger="esp_medsam_app.server.infer_task"):
        run(logging=level, client_id="someone")
    assert sum("someone" in line for line in caplog.messages) == lines


def test_nothing_is_left_when_it_fails(
    run: Run, segmenters: FakeSegmenters, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenters.error = OutOfMemoryError("too large")
    with pytest.raises(OutOfMemoryError):
        run()
    segmenters.error = None

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esp_medsam_app.server.infer_task.write_label_map", full)
    with pytest.raises(EspMedSamError, match="No space left"):
        run()
    assert list(temporary.iterdir()) == []


def test_what_looks_like_another_modality_is_refused_before_the_work(
    run: Run, studies: Path, segmenters: FakeSegmenters, temporary: Path
) -> None:
    segmenters.mistaken["photo"] = "ct_organs"
    picture = str(studies / "photo.png")
    with pytest.raises(InputError, match=r"looks like ct_organs.*option any_image of this one"):
        run(image=picture)
    assert segmenters.calls == 0
    assert list(temporary.iterdir()) == []
    # what Slicer sends when the box is ticked, and what other clients do
    for said in (True, "true"):
        assert run(image=picture, any_image=said)[0].exists()


@pytest.fixture
def raw_ct(tmp_path: Path) -> str:
    """Soft tissue without its rescale intercept."""
    voxels = np.random.default_rng(0).normal(1064, 20, (9, 8, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "raw.nii.gz")
    return str(tmp_path / "raw.nii.gz")


HU = ORGANS.model_copy(update={"intensity": Intensity(kind="window", low=-160, high=240)})


def test_a_ct_that_is_not_in_hounsfield_units_is_refused_before_the_work(
    raw_ct: str, segmenters: FakeSegmenters, temporary: Path
) -> None:
    for task in (
        EspMedSamInferTask(HU, segmenters),
        EspMedSamInferTask(HU, segmenters, check_images=False),
        AddedInferTask(HU, segmenters, check_images=False),
    ):
        assert task.info()["config"] == {"any_image": False}
        with pytest.raises(InputError, match=r"not Hounsfield units.*option any_image"):
            task({"image": raw_ct})
        assert segmenters.calls == 0
    assert list(temporary.iterdir()) == []
    file, _ = EspMedSamInferTask(HU, segmenters)({"image": raw_ct, "any_image": True})
    Path(file).unlink()


def test_an_admin_may_switch_units_off(
    raw_ct: str, segmenters: FakeSegmenters, temporary: Path
) -> None:
    task = EspMedSamInferTask(HU, segmenters, check_images=False, check_units=False)
    assert task.info()["config"] == {}
    Path(task({"image": raw_ct})[0]).unlink()


def test_how_the_image_was_read_is_in_the_answer(run: Run, tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[:3, 1] += 0.4 * sheared[:3, 0]
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 7, np.int16), sheared), tmp_path / "a.nii.gz")
    _, answer = run(image=str(tmp_path / "a.nii.gz"))
    assert "3D Slicer, refuses its header" in answer["warnings"][0]
    assert "warnings" not in run()[1]


def test_an_admin_may_switch_that_off(studies: Path, segmenters: FakeSegmenters) -> None:
    segmenters.mistaken["photo"] = "ct_organs"
    task = EspMedSamInferTask(SPOTS, segmenters, check_images=False)
    file, _ = task({"image": str(studies / "photo.png")})
    Path(file).unlink()
    assert task.info()["config"] == {}


def test_info_is_what_viewers_read(segmenters: FakeSegmenters) -> None:
    info = json.loads(json.dumps(EspMedSamInferTask(ORGANS, segmenters).info()))
    assert info == {
        "type": "segmentation",
        "labels": {"liver": 1, "spleen": 2},
        "dimension": 3,
        "description": "Organs in CT. Two.",
        "config": {"any_image": False},
    }
