"""Every answer is numbered, errors are JSON with a reason, and no path of the server gets out."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.door.redaction import Redaction

INFER = "/infer/esp_medsam_ct_organs"
LABEL_MAP = "labels/final/case.nii.gz"


def told(response: Any) -> str:
    body = response.json()
    assert set(body) == {"detail", "request_id"}
    assert body["request_id"] == response.headers["x-request-id"]
    return str(body["detail"])


@pytest.mark.parametrize("params", ["{", "null", "123", '"x"', "[]", "NaN", '{"a": NaN}', "\x00"])
def test_params_that_are_no_mapping(either: TestClient, params: str) -> None:
    wanted = {"image": "case", "output": "json"}
    response = either.post(INFER, params=wanted, data={"params": params})
    assert response.status_code == 422
    assert "params" in told(response)
    for method, path, field in (
        ("PUT", "/datastore/image/info?image=case", "info"),
        ("PUT", "/datastore/label?image=case", "params"),
        ("PUT", "/datastore/image?image=new", "params"),
    ):
        file = {"file": ("a.png", b"x"), "label": ("a.png", b"x")}
        response = either.request(method, path, data={field: params}, files=file)
        assert response.status_code == 422
        assert field in told(response)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("PATCH", "/info/", 405),
        ("POST", INFER, 422),
        ("GET", "/datastore/image", 422),
        ("GET", "/datastore/?output=everything", 422),
        ("GET", "/datastore/image?image=nobody", 404),
        ("GET", "/datastore/image/info?image=nobody", 404),
        ("PUT", "/datastore/image/info?image=nobody", 404),
        ("GET", "/datastore/label?label=case&tag=final", 404),
        ("GET", "/datastore/label/info?label=case&tag=final", 404),
        ("PUT", "/datastore/label/info?label=case&tag=final", 404),
        ("DELETE", "/datastore/image?id=nobody", 404),
        ("DELETE", "/datastore/label?id=case&tag=final", 404),
        ("GET", "/datastore/dataset", 404),
        ("GET", "/session/nobody", 404),
        ("DELETE", "/session/nobody", 404),
        ("GET", "/model/esp_medsam_knee", 404),
        ("GET", "/logs/gpu", 404),
        ("GET", "/proxy/dicom/qido/studies", 404),
        ("POST", "/activelearning/wisest", 404),
        ("POST", "/train/esp_medsam_knee", 404),
        ("POST", "/batch/infer/esp_medsam_knee", 404),
        ("POST", "/scoring/wisest", 404),
        ("POST", "/infer/wsi_v2/esp_medsam_spots", 404),
        ("POST", "/reload", 405),
    ],
)
def test_errors_of_the_client(
    door: TestClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: int
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    response = door.request(method, path)
    assert response.status_code == status
    assert told(response)


def test_a_defect_is_in_the_log_under_the_number_that_the_client_gets(
    door: TestClient, app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def broken() -> None:
        raise ZeroDivisionError("the secret cause")

    monkeypatch.setattr(app, "info", broken)
    with caplog.at_level(logging.ERROR):
        response = door.get("/info/")
    assert response.status_code == 500
    assert response.json()["request_id"] in told(response)
    assert "secret" not in response.text
    assert f"request {response.json()['request_id']}" in caplog.text
    assert "the secret cause" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (requests.ConnectTimeout("http://pacs:8042"), 504),
        (requests.ConnectionError("http://pacs:8042"), 503),
        (requests.HTTPError("http://pacs:8042"), 502),
        (MemoryError(), 503),
    ],
)
def test_errors_of_other_servers(
    door: TestClient, app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch, error: Exception,
    status: int,
) -> None:  # fmt: skip
    def broken() -> None:
        raise error

    monkeypatch.setattr(app, "info", broken)
    response = door.get("/info/")
    assert response.status_code == status
    assert "8042" not in told(response)


def test_answers_hold_no_paths(either: TestClient, studies: Path, tmp_path: Path) -> None:
    content = (studies / "case.nii.gz").read_bytes()
    saved = either.put(
        "/datastore/label", params={"image": "case"}, files={"label": ("a.nii.gz", content)},
        data={"params": json.dumps({"label_info": [{"name": str(studies), "idx": 7}]})},
    )  # fmt: skip
    session = either.put("/session/", files={"files": ("a.nii.gz", content)}).json()
    answers = [
        saved,
        either.get("/datastore/?output=train"),
        either.get("/datastore/?output=all"),
        either.get("/datastore/image/info?image=case"),
        either.post("/activelearning/random"),
        either.get(f"/session/{session['session_id']}"),
        either.post(INFER, params={"image": str(studies / "case.nii.gz")}),
        either.get("/info/"),
    ]
    for answer in answers:
        assert str(tmp_path) not in answer.text, answer.text


def test_paths_give_way_to_what_lies_below(
    door: TestClient, app: EspMedSamApp, studies: Path
) -> None:
    (studies / LABEL_MAP).write_bytes((studies / "case.nii.gz").read_bytes())
    app.datastore().refresh()
    assert door.get("/datastore/?output=train").json() == [
        {"image": "case.nii.gz", "label": LABEL_MAP}
    ]


def test_the_next_image_comes_without_a_path(either: TestClient) -> None:
    assert "path" not in either.post("/activelearning/random").json()


@given(
    st.lists(st.from_regex(r"/[a-zé][a-z0-9_]{1,8}(/[a-z0-9._-]{1,8}){0,3}", fullmatch=True),
             min_size=1, max_size=4),
    st.text(alphabet="abc /\"\\\n{}:é", max_size=10),
)  # fmt: skip
def test_redaction_leaves_no_root(roots: list[str], noise: str) -> None:
    redaction = Redaction(roots)
    for root in roots:
        for path in (root, f"{root}/deep/file.nii.gz"):
            content = json.dumps({"a": f"{noise} '{path}'"}, ensure_ascii=noise.isascii())
            left = json.loads(redaction.body(content.encode()))["a"]
            assert f"'{root}" not in left
            if path != root:
                assert left.endswith("file.nii.gz'")


def test_redaction_spares_what_is_no_path_of_the_server() -> None:
    redaction = Redaction(["/studies", "/srv/data", ""])
    for text in (
        "http://pacs/dicom-web/studies/1.2.3",
        "a/studies/b",
        "/studies2/x",
        "/srv/database",
        "1/srv/data/x",
    ):
        assert redaction.text(text) == text
    assert redaction.text('["/studies/a.png", "/studies"]') == '["a.png", ""]'
    assert Redaction([]).text("/x") == "/x"


def test_no_cache_keeps_patients_images(door: TestClient) -> None:
    for path in ("/datastore/image?image=case", "/info/", "/datastore/"):
        response = door.get(path)
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_head_is_answered_without_a_body(door: TestClient) -> None:
    found = door.head("/datastore/image?image=case")
    assert (found.status_code, found.content) == (200, b"")
    assert door.head("/datastore/image?image=nobody").status_code == 404
