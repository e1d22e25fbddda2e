"""Input that MONAI Label answers with 500, or with a mask of what cannot be segmented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from support.fake_server import AFFINE, FakeSegmenters

from esp_medsam_app.inference.device import choose_device
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.pacs.routes import add_dicom_seg_route

ORGANS, SPOTS = "/infer/esp_medsam_ct_organs", "/infer/esp_medsam_spots"
VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def volume(voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    return image


def header(**fields: Any) -> bytes:
    """A file whose header says something else than its voxels."""
    image = volume()
    for name, value in fields.items():
        image.header[name] = value
    voxels = np.asarray(image.dataobj).tobytes(order="F")
    return bytes(image.header.binaryblock + bytes(4) + voxels)


def with_value(value: float) -> bytes:
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = value
    return bytes(volume(voxels).to_bytes())


IMAGES: dict[str, bytes] = {
    "truncated": volume().to_bytes()[:400],
    "header only": volume().to_bytes()[:352],
    "huge": header(dim=[3, 20000, 20000, 2000, 1, 1, 1, 1]),
    "negative": header(dim=[3, -6, 5, 4, 1, 1, 1, 1]),
    "no dimensions": header(dim=[0, 0, 0, 0, 0, 0, 0, 0]),
    "no slices": header(dim=[3, 6, 5, 0, 1, 1, 1, 1]),
    "4D": volume(np.zeros((6, 5, 4, 3), np.int16)).to_bytes(),
    "NaN": with_value(np.nan),
    "infinite": with_value(np.inf),
    "complex": volume(VOXELS.astype(np.complex64)).to_bytes(),
    "affine of zeros": header(srow_x=0, srow_y=0, srow_z=0),
    "affine of NaN": header(srow_x=np.nan),
    "unknown type": header(datatype=9999),
    "text": b"I am a text, and no image\n" * 40,
    "nothing": b"",
}


def refused(answer: Any) -> str:
    """Why; it names no place of the server."""
    assert answer.status_code == 422, answer.text
    told = str(answer.json()["detail"])
    assert "/tmp" not in told
    assert "Traceback" not in told
    return told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
def test_images_that_are_none(
    door: TestClient, app: EspMedSamApp, studies: Path, segmenters: FakeSegmenters,
    temporary: Path, content: bytes,
) -> None:  # fmt: skip
    """By upload, by a session, and by the id of a file that lies in the folder."""
    assert "the uploaded image" in refused(
        door.post(ORGANS, files={"file": ("x.nii", content)}, params={"output": "image"})
    )
    made = door.put("/session/", files={"files": ("x.nii", content)})
    if content:
        session = made.json()["session_id"]
        told = refused(door.post(ORGANS, params={"session_id": session, "output": "image"}))
        assert "the session's image" in told
    else:
        assert "empty" in refused(made)
    (studies / "other.nii").write_bytes(content)
    app.datastore().refresh()
    told = refused(door.post(ORGANS, params={"image": "other", "output": "image"}))
    assert "image 'other'" in told
    assert segmenters.calls == 0
    assert list(temporary.iterdir()) == []


def test_a_file_without_a_suffix_tells_what_is_missing(door: TestClient, studies: Path) -> None:
    content = (studies / "case.nii.gz").read_bytes()
    told = refused(door.post(ORGANS, files={"file": ("case", content)}, params={"output": "json"}))
    assert "not a format that can be read" in told
    assert "NIfTI" in told


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("device", 5), ("device", "nonsense"), ("device", ["nonsense"]), ("device", {"a": 1}),
        ("device", "cuda:99"), ("logging", "nonsense"), ("logging", 5),
        ("result_extension", ".exe"), ("result_extension", "../x.nii.gz"),
        ("result_extension", ".png"), ("result_dtype", "nonsense"), ("result_dtype", 8),
        ("label_prompt", ["knee"]), ("label_tag", "../../x"),
    ],
)  # fmt: skip
def test_options_that_are_none(
    door: TestClient, segmenters: FakeSegmenters, monkeypatch: pytest.MonkeyPatch,
    option: str, value: Any,
) -> None:  # fmt: skip
    # as the segmenter that this one stands for
    monkeypatch.setattr(segmenters, "get", lambda name="auto": choose_device(name) and segmenters)
    answer = door.post(
        ORGANS,
        params={"image": "case", "output": "image"},
        data={"params": json.dumps({option: value, "save_label": True})},
    )
    assert option in refused(answer).replace("device 'cuda:99'", "device")
    assert segmenters.calls == 0


@pytest.mark.parametrize("option", ["skip_writer", "result_write_to_file"])
@pytest.mark.parametrize("output", ["image", "json", "all"])
def test_an_answer_is_always_a_whole_one(door: TestClient, option: str, output: str) -> None:
    """MONAI Label's options for its own tasks leave no file, and its endpoint looks for one."""
    plain, odd = (
        door.post(
            ORGANS, params={"image": "case", "output": output}, data={"params": json.dumps(params)}
        )
        for params in ({}, {option: option == "skip_writer"})
    )
    assert plain.status_code == odd.status_code == 200
    if output == "image":
        assert odd.content == plain.content


def colours(folder: Path) -> bytes:
    voxels = np.zeros((6, 5, 4), RGB)
    for channel in "RGB":
        voxels[channel][1:3, 1:4, 1:3] = 100
        voxels[channel][4, 2, 0] = 200
    nib.save(nib.Nifti1Image(voxels, AFFINE), folder / "colours.nii")
    return (folder / "colours.nii").read_bytes()


def test_colours_in_nifti_are_colours(door: TestClient, tmp_path: Path) -> None:
    file = {"file": ("x.nii", colours(tmp_path))}
    answer = door.post(ORGANS, params={"output": "image"}, files=file)
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert np.allclose(mask.affine, AFFINE)
    found = np.asarray(mask.dataobj)
    assert (int((found == 1).sum()), int(found[4, 2, 0])) == (12, 2)


def test_a_model_of_pictures_draws_each_slice(
    door: TestClient, tmp_path: Path, organs: np.ndarray
) -> None:
    """A mask on the volume's own grid, not one of its first slice."""
    answer = door.post(SPOTS, params={"image": "case", "output": "image"})
    assert answer.status_code == 200
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == organs.shape
    assert np.allclose(mask.affine, AFFINE)


@pytest.mark.parametrize("session", ["x", "00000000-0000-0000-0000-000000000000", "..", ""])
def test_sessions_that_are_none(door: TestClient, session: str) -> None:
    answer = door.post(ORGANS, params={"session_id": session})
    assert answer.status_code == (404 if session else 422)
    assert "session" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "a.bin"), (b"\1" * 7, "a.bin"), (b"\1" * 120, "a.bin"), (b"", "a.nii.gz"),
     (b"text", "a.nii.gz"), (b"text", "a.nrrd"), (b"text", "a.seg.nrrd"), (b"text", "a.dcm"),
     (b"text", "a")],
)  # fmt: skip
def test_labels_that_are_none(door: TestClient, studies: Path, content: bytes, name: str) -> None:
    told = refused(
        door.put(
            "/datastore/label",
            params={"image": "case"},
            files={"label": (name, content)},
            data={"params": '{"label_info": [{"name": "liver"}]}'},
        )
    )
    assert "label map" in told
    assert [path for path in (studies / "labels").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("output", ["dicom_seg", "everything", "5"])
def test_outputs_that_there_are_not(
    door: TestClient, segmenters: FakeSegmenters, output: str
) -> None:
    """A DICOM SEG of what is no DICOM, and none of MONAI Label's names."""
    add_dicom_seg_route(endpoints)
    told = refused(door.post(ORGANS, params={"image": "case", "output": output}))
    assert "DICOM" in told if output == "dicom_seg" else "output" in told
    assert segmenters.calls == 0
