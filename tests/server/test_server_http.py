"""MONAI Label's endpoints around the app: what a viewer gets, also when something is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.fake_server import AFFINE, FakeSegmenters, detail

from esp_medsam_app import __version__
from esp_medsam_app.errors import (
    EspMedSamError,
    InputError,
    OutOfMemoryError,
    UnknownNameError,
    WeightsError,
)
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.infer_task import EspMedSamInferTask

ORGANS_MODEL = "/infer/esp_medsam_ct_organs"


def infer(client: TestClient, image: str = "case", /, **params: Any) -> Any:
    return client.post(
        ORGANS_MODEL,
        params={"image": image, "output": "image"},
        data={"params": json.dumps(params)},
    )


def upload(client: TestClient, content: bytes, name: str = "x.nii.gz", **params: Any) -> Any:
    return client.post(
        ORGANS_MODEL,
        params={"output": "image"},
        data={"params": json.dumps(params)},
        files={"file": (name, content)},
    )


def labels_of(response: Any, tmp_path: Path) -> np.ndarray:
    assert response.status_code == 200, response.text
    path = tmp_path / "answer.nii.gz"
    path.write_bytes(response.content)
    return np.asarray(nib.load(path).dataobj)


def test_info(client: TestClient) -> None:
    info = client.get("/info/").json()
    assert not info.get("config")
    assert info["labels"] == ["liver", "spleen", "spot"]
    assert info["version"] == __version__
    assert list(info["models"]) == ["esp_medsam_ct_organs", "esp_medsam_spots"]
    assert info["models"]["esp_medsam_spots"]["dimension"] == 2
    assert info["trainers"] == info["train_stats"] == {}
    assert list(info["scoring"]) == ["dice", "sum", "uncertainty"]
    assert list(info["strategies"]) == ["random", "first", "uncertainty", "diversity", "hybrid"]
    assert info["datastore"]["total"] == 2


def test_infer_answers_with_json_and_file(client: TestClient) -> None:
    response = client.post(ORGANS_MODEL, params={"image": "case"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("multipart/form-data")
    assert b'name="params"' in response.content
    assert b'"label_names": {"liver": 1, "spleen": 2}' in response.content
    assert response.content.index(b'name="params"') < response.content.index(b'name="image"')


def test_infer_by_id(client: TestClient, organs: np.ndarray, tmp_path: Path) -> None:
    labels = labels_of(infer(client), tmp_path)
    assert np.array_equal(labels, np.where(organs % 100 == 0, organs // 100, 0))


def test_infer_by_upload(
    client: TestClient, studies: Path, temporary: Path, tmp_path: Path
) -> None:
    response = upload(client, (studies / "case.nii.gz").read_bytes())
    assert labels_of(response, tmp_path).max() == 2
    assert list(temporary.iterdir()) == []


def test_infer_by_session(client: TestClient, studies: Path, tmp_path: Path) -> None:
    content = (studies / "case.nii.gz").read_bytes()
    session = client.put("/session/", files={"files": ("my image.nii.gz", content)}).json()
    response = client.post(
        ORGANS_MODEL, params={"session_id": session["session_id"], "output": "image"}
    )
    assert labels_of(response, tmp_path).max() == 2


def test_unknown_model(client: TestClient) -> None:
    response = client.post("/infer/esp_medsam_knee", params={"image": "case"})
    assert response.status_code == 404
    assert "'esp_medsam_knee'" in detail(response)
    assert "esp_medsam_ct_organs, esp_medsam_spots" in detail(response)


def test_unknown_image(client: TestClient) -> None:
    response = infer(client, "nobody")
    assert response.status_code == 404
    assert "'nobody'" in detail(response)


@pytest.mark.parametrize("session_id", ["00000000-0000-0000-0000-000000000000", "../x", "no"])
def test_unknown_session(client: TestClient, session_id: str) -> None:
    response = client.post(ORGANS_MODEL, params={"session_id": session_id})
    assert response.status_code == 404
    assert "session" in detail(response)


def test_paths_are_not_read(client: TestClient, studies: Path, segmenters: FakeSegmenters) -> None:
    path = str(studies / "case.nii.gz")
    forged = {"image": path, "session": {"image": path, "path": str(studies)}}
    for response in (infer(client, path), infer(client, **forged)):
        assert response.status_code == 404
    assert segmenters.calls == 0


@pytest.mark.parametrize(
    "params",
    [{"result_extension": ".stl"}, {"result_dtype": "int"}, {"label_prompt": ["knee"]},
     {"save_label": True, "label_tag": "../../up"}, {"image": 3}],
)  # fmt: skip
def test_bad_params(client: TestClient, params: dict[str, Any]) -> None:
    response = infer(client, **params)
    assert response.status_code == 422
    assert list(params)[-1] in detail(response)


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"I am a text", "x.nii.gz"), (b"", "x.nii.gz"), (b"\x89PNG no", "x.png"), (b"x", "x.docx")],
)
def test_bad_uploads(client: TestClient, temporary: Path, content: bytes, name: str) -> None:
    response = upload(client, content, name)
    assert response.status_code == 422
    assert "the uploaded image" in detail(response)
    assert str(temporary) not in detail(response)
    assert list(temporary.iterdir()) == []


def test_a_bad_image_of_the_datastore_is_named_by_its_id(client: TestClient, studies: Path) -> None:
    content = (studies / "case.nii.gz").read_bytes()
    (studies / "case.nii.gz").write_bytes(content[: len(content) // 2])
    response = infer(client)
    assert response.status_code == 422
    assert "image 'case'" in detail(response)
    assert str(studies) not in detail(response)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (InputError("too flat", remedy="Inflate it"), 422, "too flat. Inflate it"),
        (UnknownNameError("no such thing"), 404, "no such thing"),
        (OutOfMemoryError("no room"), 503, "no room"),
        (WeightsError("damaged", path="/srv/weights"), 503, "damaged"),
        (EspMedSamError("odd"), 500, "odd"),
        (MemoryError(), 503, "memory"),
    ],
)
def test_explained_errors(
    client: TestClient, segmenters: FakeSegmenters, error: Exception, status: int, told: str
) -> None:
    segmenters.error = error
    response = infer(client)
    assert response.status_code == status
    assert told in detail(response)
    assert "/srv/weights" not in detail(response)
    segmenters.error = None
    assert infer(client).status_code == 200


def test_defects_are_logged_and_not_shown(
    client: TestClient, segmenters: FakeSegmenters, caplog: pytest.LogCaptureFixture
) -> None:
    segmenters.error = ZeroDivisionError("the secret cause")
    with caplog.at_level(logging.ERROR):
        response = infer(client)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    number = detail(response).split()[-1].rstrip(".")
    assert f"error {number}" in caplog.text
    assert "the secret cause" in caplog.text
    assert "Traceback" in caplog.text


def test_save_label_keeps_the_result(client: TestClient, studies: Path, organs: np.ndarray) -> None:
    assert infer(client, save_label=True, label_tag="first_try").status_code == 200
    kept = nib.load(studies / "labels" / "first_try" / "case.nii.gz")
    assert np.array_equal(np.asarray(kept.dataobj), np.where(organs % 100 == 0, organs // 100, 0))
    objects = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    info = objects["case"]["labels"]["first_try"]["info"]
    assert info["params"]["label_names"] == {"liver": 1, "spleen": 2}


def test_results_do_not_pile_up(client: TestClient, temporary: Path) -> None:
    infer(client)
    infer(client, save_label=True)
    client.post(ORGANS_MODEL, params={"image": "case"})
    assert list(temporary.iterdir()) == []


def test_next_sample(client: TestClient) -> None:
    seen = {client.post("/activelearning/random", json={}).json()["id"] for _ in range(3)}
    assert seen <= {"case", "photo"}
    assert seen


def test_next_sample_of_an_unknown_strategy(client: TestClient) -> None:
    response = client.post("/activelearning/wisest", json={})
    assert response.status_code == 404
    assert "random" in detail(response)


def test_next_sample_when_all_have_labels(client: TestClient, studies: Path) -> None:
    for image in ("case.nii.gz", "photo.png"):
        with (studies / image).open("rb") as file:
            saved = client.put(
                "/datastore/label",
                params={"image": image.split(".")[0]},
                files={"label": (image, file)},
            )
        assert saved.status_code == 200
    assert client.post("/activelearning/random", json={}).json() == {}
    assert client.get("/info/").json()["datastore"]["completed"] == 2


def test_models_are_chosen(make_app: Callable[..., EspMedSamApp]) -> None:
    assert list(make_app(models="spots").info()["models"]) == ["esp_medsam_spots"]
    with pytest.raises(UnknownNameError, match="esp_medsam_spots"):
        make_app(models="knee")


def test_nothing_is_downloaded_before_a_pacs(
    make_app: Callable[..., EspMedSamApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI Label fetches dcmqi's programs from the internet if they are not on PATH."""

    def download(**_: Any) -> None:
        raise AssertionError("no internet here")

    monkeypatch.setattr("monailabel.interfaces.app.download_and_extract", download)
    monkeypatch.setenv("PATH", "")
    make_app()._download_dcmqi_tools()


def test_a_damaged_datastore_does_not_stop_the_server(
    make_app: Callable[..., EspMedSamApp], studies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (studies / "datastore_v2.json").write_text('{"name": ')
    assert make_app().datastore().list_images() == ["case", "photo"]
    assert "datastore_v2.json is damaged" in caplog.text


def test_many_kinds_of_images_are_offered(
    make_app: Callable[..., EspMedSamApp], studies: Path
) -> None:
    names = ["a.nii", "b.NII.GZ", "c.nrrd", "d.jpg", "e.JPEG", "f.tiff", "g.tif", "h.dcm", "i.PNG"]
    for name in [*names, "notes.txt", "table.xml"]:
        (studies / name).touch()
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), AFFINE), studies / "v1.2.nii.gz")
    assert sorted(make_app().datastore().list_images()) == [
        "a", "b", "c", "case", "d", "e", "f", "g", "h", "i", "photo", "v1.2",
    ]  # fmt: skip


def test_a_batch_goes_on_after_a_bad_image(
    client: TestClient, studies: Path, temporary: Path
) -> None:
    # "case" comes before "photo"
    (studies / "case.nii.gz").write_bytes(b"damaged")
    response = client.post(
        "/batch/infer/esp_medsam_spots",
        params={"images": "all", "run_sync": True},
        json={"device": "cuda", "multi_gpu": True, "gpus": "all", "max_workers": 1},
    )
    assert response.status_code == 200
    answers = response.json()
    assert "image 'case'" in answers["case"]["error"]
    assert answers["photo"]["label"] == "photo"
    assert (studies / "labels" / "original" / "photo.png").is_file()
    assert list(temporary.iterdir()) == []


def test_a_batch_goes_on_where_it_was(
    client: TestClient, segmenters: FakeSegmenters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenters, "version", lambda modality: 0)

    def batch(**params: object) -> dict[str, dict[str, object]]:
        response = client.post(
            "/batch/infer/esp_medsam_spots",
            params={"images": "all", "run_sync": True},
            json={"device": "cpu", "max_workers": 1, **params},
        )
        assert response.status_code == 200
        return dict(response.json())

    # as if it was killed after the first
    assert set(batch(max_batch_size=1)) == {"case"}
    answers = batch()
    assert answers["case"] == {"skipped": "up to date"}
    assert answers["photo"]["label"] == "photo"
    assert all("skipped" in answer for answer in batch().values())
    assert not any("skipped" in answer for answer in batch(again=True).values())
    assert set(batch(images=["photo"])) == {"photo"}
    # by now another version serves
    monkeypatch.setattr(EspMedSamInferTask, "serving", lambda self, modality: 1)
    assert not any("skipped" in answer for answer in batch().values())
