"""Inference through the front door."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.fake_server import FakeSegmenters

from esp_medsam_app.server.door.asgi_types import answer

MODEL = "/infer/esp_medsam_ct_organs"


def test_an_answer_is_what_monai_label_would_give(door: TestClient, client: TestClient) -> None:
    def parts(answer: Any) -> list[bytes]:
        boundary = answer.headers["content-type"].split("boundary=")[1].strip('"').encode()
        found = [part.strip() for part in answer.content.split(b"--" + boundary)]
        return [part.split(b"\r\n\r\n", 1)[-1] for part in found]

    options = {"image": "case"}, {"params": '{"result_extension": ".nrrd"}'}
    ours, theirs = (c.post(MODEL, params=options[0], data=options[1]) for c in (door, client))
    assert ours.status_code == theirs.status_code == 200
    assert json.loads(parts(ours)[1])["label_names"] == json.loads(parts(theirs)[1])["label_names"]
    assert parts(ours)[2] == parts(theirs)[2]


def test_every_answer_tells_the_modality(door: TestClient, segmenters: FakeSegmenters) -> None:
    """A mask alone has no JSON: its headers tell."""
    segmenters.modality_of["case.nii"] = "ct_organs"
    for output in ("image", "json"):
        answer = door.post(MODEL, params={"image": "case", "output": output})
        assert answer.status_code == 200
        told = answer.json() if output == "json" else {
            name: answer.headers[f"x-{name.replace('_', '-')}"]
            for name in ("modality", "modality_read", "modality_confidence", "modality_source")
        }  # fmt: skip
        assert told["modality"] == told["modality_read"] == "ct_organs"
        assert float(told["modality_confidence"]) == 1
        assert told["modality_source"] == "classifier"


@pytest.mark.parametrize("output", ["image", "json", "all", None])
def test_nothing_is_left_behind(
    door: TestClient, studies: Path, temporary: Path, output: str | None
) -> None:
    query = {"output": output} if output else {}
    content = (studies / "case.nii.gz").read_bytes()
    for request in (
        {"params": {**query, "image": "case"}},
        {"params": query, "files": {"file": ("x.nii.gz", content)}},
        {"params": {**query, "image": "case"}, "files": {"label": ("scribble.bin", b"x")}},
        {"params": {**query, "image": "case"}, "data": {"params": '{"save_label": true}'}},
    ):
        answer = door.post(MODEL, **request)
        assert answer.status_code == 200, answer.text
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("wanted", ["bytes=0-3", "bytes=9-1", "bytes=x", "\xff,"])
def test_nothing_is_left_behind_by_odd_ranges(
    door: TestClient, temporary: Path, wanted: str
) -> None:
    query = {"image": "case", "output": "image"}
    headers = {"range": wanted.encode("latin-1")}
    assert door.post(MODEL, params=query, headers=headers).status_code in (200, 206, 400, 416)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), MemoryError()])
def test_nothing_is_left_behind_by_errors(
    door: TestClient, studies: Path, temporary: Path, segmenters: FakeSegmenters, error: Exception
) -> None:
    segmenters.error = error
    content = (studies / "case.nii.gz").read_bytes()
    assert door.post(MODEL, files={"file": ("x.nii.gz", content)}).status_code in (500, 503)
    assert list(temporary.iterdir()) == []


def test_parameters_do_not_change_what_the_address_says(
    door: TestClient, studies: Path, segmenters: FakeSegmenters
) -> None:
    forged = {
        "model": "esp_medsam_spots", "image": str(studies / "photo.png"), "file": "/etc/passwd",
        "session": {"image": str(studies / "photo.png")},
    }  # fmt: skip
    answer = door.post(
        MODEL, params={"image": "case", "output": "json"}, data={"params": json.dumps(forged)}
    )
    assert answer.json()["label_names"] == {"liver": 1, "spleen": 2}
    for image in (str(studies / "case.nii.gz"), "../studies/case", "case\0"):
        assert door.post(MODEL, params={"image": image}).status_code in (404, 422)
    assert segmenters.calls == 1


def test_dicom_seg_is_made_beside_these_routes(
    door: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def beside(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await answer(send, 200, "made")

    monkeypatch.setattr(door.app, "_monai_label", beside)
    wanted = {"image": "case", "output": "dicom_seg"}
    assert door.post(MODEL, params=wanted).text == "made"
    for output in ("json", ["dicom_seg", "json"], ["json", "dicom_seg"]):
        found = door.post(MODEL, params={"image": "case", "output": output})
        assert found.status_code in (200, 422)
    assert asked == [MODEL]


def test_an_unreadable_upload_is_refused(door: TestClient, temporary: Path) -> None:
    for name, content in (("a.nii.gz", b"x"), ("noend", b"x"), ("a.exe", b"x"), ("", b"")):
        answer = door.post(MODEL, files={"file": (name or "x", content)})
        assert answer.status_code == 422
        assert str(temporary) not in answer.text
    assert list(temporary.iterdir()) == []


def test_the_idlest_device(
    make_app: Callable[..., Any], segmenters: FakeSegmenters, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esp_medsam_app.server.devices import DeviceLoads

    loads = DeviceLoads(["cuda:0", "cuda:1", "cuda:2"])
    with loads.chosen("auto") as one, loads.chosen(None) as two, loads.chosen("cuda:2") as three:
        assert (one, two, three) == ("cuda:0", "cuda:1", "cuda:2")
        with loads.chosen(["cuda"]) as four:
            assert four == "cuda:0"
            with loads.chosen("") as five:
                assert five == "cuda:1"
    assert set(loads._running.values()) == {0}
    with pytest.raises(ZeroDivisionError), loads.chosen("auto"):
        raise ZeroDivisionError
    assert set(loads._running.values()) == {0}
    with DeviceLoads(["cuda:0"]).chosen("auto") as device:
        assert device == "auto"
    for other in ("cpu", {}, 3, [[]]):
        with loads.chosen(other) as device:
            assert device == (other[0] if isinstance(other, list) else other)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    app = make_app()
    app.infer({"model": "esp_medsam_spots", "image": "photo"})
    with app._devices.chosen("auto"):
        app.infer({"model": "esp_medsam_spots", "image": "photo"})
    make_app(device="cpu").infer({"model": "esp_medsam_spots", "image": "photo"})
    assert segmenters.devices == ["cuda:0", "cuda:1", "auto"]
