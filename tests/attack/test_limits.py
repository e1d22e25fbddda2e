"""Names that are too long, infos without end, guesses at folders: told, and never a bare 500."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from monailabel.interfaces.exception import MONAILabelException

from esp_medsam_app.server import told_texts
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.door.failures import failure

LONG = "n" * 5000


def submit(door: TestClient, studies: Path, tag: str) -> int:
    file = {"label": ("a.png", (studies / "photo.png").read_bytes())}
    names = {"params": '{"label_info": [{"name": "spot", "idx": 100}, {"name": "x", "idx": 7}]}'}
    params = {"image": "photo", "tag": tag}
    return door.put("/datastore/label", params=params, files=file, data=names).status_code


@pytest.mark.parametrize("length", [65, 256, 5000])
def test_a_tag_is_no_longer_than_a_name(door: TestClient, studies: Path, length: int) -> None:
    assert submit(door, studies, "t" * length) == 422
    params = json.dumps({"save_label": True, "label_tag": "t" * length})
    answer = door.post("/infer/esp_medsam_spots?image=photo", data={"params": params})
    assert answer.status_code == 422
    assert submit(door, studies, "t" * 64) == 200


@pytest.mark.parametrize(
    "path",
    [LONG, f"a/{LONG}", "/".join(["a" * 100] * 60), "ü" * 150, f"{LONG}.js", "n" * 256],
)
@pytest.mark.parametrize("below", ["/ohif/", "/static/", "/session/", "/model/", "/infer/", "/"])
def test_an_address_that_is_too_long(door: TestClient, below: str, path: str) -> None:
    method = "POST" if below == "/infer/" else "GET"
    assert door.request(method, f"{below}{path}").status_code in (404, 405, 422)


@pytest.mark.parametrize("name", ["image", "label", "id", "session_id"])
def test_an_id_that_is_too_long(door: TestClient, name: str) -> None:
    for method, path in (
        ("GET", "/datastore/image"), ("GET", "/datastore/label"), ("GET", "/datastore/image/info"),
        ("DELETE", "/datastore/image"), ("POST", "/infer/esp_medsam_spots"),
    ):  # fmt: skip
        answer = door.request(method, path, params={name: LONG, "tag": "final"})
        assert answer.status_code in (404, 422), (method, path)


def test_a_name_for_which_no_file_system_has_room_is_told() -> None:
    told = failure(OSError(36, "File name too long", LONG), "x")
    assert told.status == 422
    assert LONG not in told.reason
    assert failure(MONAILabelException("x", "y"), "x").status == 500


# --- infos ----------------------------------------------------------------------------------------


def describe(door: TestClient, image: str, info: dict[str, str]) -> int:
    told = {"info": json.dumps(info)}
    return door.put(f"/datastore/image/info?image={image}", data=told).status_code


def test_what_is_told_of_an_image_is_limited(door: TestClient, studies: Path) -> None:
    """Also when it is told a bit at a time."""
    assert describe(door, "photo", {"a": "x" * 100_000}) == 413
    statuses = [describe(door, "photo", {str(n): "x" * 20_000}) for n in range(6)]
    assert statuses == [200, 200, 200, 413, 413, 413]
    assert (studies / "datastore_v2.json").stat().st_size < 100_000
    # what is there can be made shorter, and another image told of
    assert describe(door, "photo", {"0": ""}) == 200
    assert describe(door, "case", {"a": "x" * 20_000}) == 200


def test_what_is_told_of_all_images_is_limited(
    door: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told_texts, "_LARGEST_FILE", 50_000)
    assert [describe(door, name, {"a": "x" * 30_000}) for name in ("photo", "case")] == [200, 413]
    # labels are submitted all the same
    assert submit(door, studies, "final") == 200


def test_what_is_told_with_an_image_or_a_label_is_limited(door: TestClient, studies: Path) -> None:
    content = (studies / "photo.png").read_bytes()
    told = {"params": json.dumps({"a": "x" * 100_000})}
    for path, field in (
        ("/datastore/image?image=new", "file"), ("/datastore/label?image=photo", "label"),
    ):  # fmt: skip
        answer = door.put(path, files={field: ("a.png", content)}, data=told)
        assert answer.status_code == 413, answer.text
    assert submit(door, studies, "final") == 200
    told = {"info": told["params"]}
    path = "/datastore/label/info?label=photo&tag=final"
    assert door.put(path, data=told).status_code == 413


def test_an_image_has_a_number_of_tags(
    door: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_medsam_app.server.local_datastore.MOST_TAGS", 2)
    assert [submit(door, studies, tag) for tag in ("a", "b", "c", "a")] == [200, 200, 422, 200]


# --- guesses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/infer/esp_medsam_spots?image={}"), ("GET", "/datastore/image?image={}"),
     ("GET", "/datastore/image/info?image={}"), ("GET", "/datastore/label?label={}&tag=final"),
     ("GET", "/datastore/label?label=photo&tag={}"), ("DELETE", "/datastore/label?id=photo&tag={}"),
     ("POST", "/infer/esp_medsam_spots?session_id={}"),
     ("POST", "/infer/esp_medsam_spots?output=dicom_seg&image={}")],
)  # fmt: skip
def test_no_answer_tells_which_folders_there_are(
    door: TestClient, app: EspMedSamApp, tmp_path: Path, method: str, path: str
) -> None:
    """The folders of the server are left out of answers: so a guess was told by what is left."""
    told = set()
    for folder in (str(tmp_path / "studies"), str(Path.home()), app.app_dir, "/guess", "/guess/b"):
        answer = door.request(method, path.format(f"{folder}/zz"))
        told.add((answer.status_code, answer.json()["detail"]))
    assert len(told) == 1, told


@pytest.mark.parametrize("name", ["label_tag"])
def test_no_parameter_is_told_back_as_a_path(door: TestClient, tmp_path: Path, name: str) -> None:
    told = set()
    for folder in (str(tmp_path / "studies"), "/guess"):
        params = {"params": json.dumps({"save_label": True, name: f"{folder}/zz"})}
        answer = door.post("/infer/esp_medsam_spots?image=photo", data=params)
        told.add((answer.status_code, answer.json()["detail"]))
    assert len(told) == 1, told


def test_plain_monai_label_does_not_tell_either(
    client: TestClient, make_app: Callable[..., EspMedSamApp], tmp_path: Path
) -> None:
    told = {
        client.post("/infer/esp_medsam_spots", params={"image": f"{folder}/zz"}).text
        for folder in (tmp_path / "studies", "/guess")
    }
    assert len(told) == 1, told
