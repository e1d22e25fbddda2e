"""What 3D Slicer downloads with no log-in: one image, by a signed id, for some minutes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from fastapi.testclient import TestClient
from monailabel.config import settings as monai_settings

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.calls import Call
from esp_medsam_app.server.door.image_addresses import SECONDS, ImageAddresses

TOKEN, ADMIN = "a token of the annotators", "another token of the admins"
ANN = {"authorization": f"Bearer {TOKEN}"}
Enter = Callable[..., TestClient]


@pytest.fixture
def closed(enter: Enter) -> TestClient:
    """A server with a log-in; the client names no program, as Slicer's does not."""
    client = enter(token=TOKEN, admin_token=ADMIN)
    del client.headers["user-agent"]
    return client


@pytest.fixture
def addresses() -> ImageAddresses:
    async def nothing(*_: Any) -> None:
        return None

    clock.now = 1e9
    return ImageAddresses(nothing, clock=clock)


class _Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


clock = _Clock()


def where(image: str) -> str:
    return f"/datastore/image?image={quote_plus(image)}"


def test_slicer_downloads_what_it_was_offered(closed: TestClient, studies: Path) -> None:
    sample = closed.post("/activelearning/first", headers=ANN, json={}).json()
    assert sample["name"] == "case.nii.gz"
    assert sample["id"].startswith("case~")
    got = closed.get(where(sample["id"]))
    assert got.status_code == 200
    assert got.content == (studies / "case.nii.gz").read_bytes()
    assert closed.head(where(sample["id"])).status_code == 200


def test_it_opens_nothing_else(closed: TestClient) -> None:
    signed = closed.post("/activelearning/first", headers=ANN, json={}).json()["id"]
    image, until, signature = signed.split("~")
    for other in (
        image, "photo", f"photo~{until}~{signature}", f"{image}~ffffffff~{signature}",
        f"{image}~{until}~{signature[::-1]}", f"{signed}~{until}~{signature}", "",
    ):  # fmt: skip
        assert closed.get(where(other)).status_code == 401, other
    for path in (
        f"/datastore/image/info?image={signed}", f"/datastore/label?label={signed}&tag=final",
        f"/datastore/image?image={signed}&image=photo~{until}~{signature}",
        f"/datastore/?output=all&image={signed}", f"/info/?image={signed}",
        f"//datastore/image?image={signed}", f"/datastore/image/?image={signed}",
    ):  # fmt: skip
        assert closed.get(path).status_code == 401, path
    for method, path in (
        ("DELETE", f"/datastore/image?id={signed}"), ("DELETE", f"/datastore/image?image={signed}"),
        ("PUT", f"/datastore/image?image={signed}"), ("POST", where(signed)),
        ("POST", f"/infer/esp_medsam_spots?image={signed}"),
    ):  # fmt: skip
        assert closed.request(method, path).status_code == 401, path


def test_two_ids_in_one_request(closed: TestClient) -> None:
    """The last one would be read."""
    signed = closed.post("/activelearning/first", headers=ANN, json={}).json()["id"]
    assert closed.get(f"{where(signed)}&image=photo").status_code == 401
    assert closed.get(f"/datastore/image?image=photo&image={signed}").status_code == 401


def test_with_a_log_in_it_is_the_image_s_id(
    closed: TestClient, studies: Path, audited: Callable[[], Any]
) -> None:
    """All that Slicer's module does with an image that it was offered."""
    signed = closed.post("/activelearning/first", headers=ANN, json={}).json()["id"]
    app_label = {"label": ("a.nii.gz", (studies / "case.nii.gz").read_bytes())}
    names = {"background": 7, "liver": 100, "spleen": 200}
    told = [{"name": name, "idx": value} for name, value in names.items()]
    info = {"params": json.dumps({"label_info": told})}
    drawn = closed.post(
        f"/infer/esp_medsam_ct_organs?image={quote_plus(signed)}&output=json", headers=ANN
    )
    assert drawn.status_code == 200, drawn.text
    listed = closed.get("/datastore/?output=all", headers=ANN).json()["objects"]
    # where it looks for the model's first draft
    assert listed[signed] == listed["case"]
    # whoever else asks sees no such id
    other = closed.get("/datastore/?output=all", headers={"authorization": f"Bearer {ADMIN}"})
    assert sorted(other.json()["objects"]) == ["case", "photo"]
    path = f"/datastore/label?image={quote_plus(signed)}"
    saved = closed.put(path, headers=ANN, files=app_label, data=info)
    assert saved.status_code == 200, saved.text
    assert saved.json()["image"] == "case"
    path = f"/datastore/label?label={quote_plus(signed)}&tag=final"
    assert closed.get(path, headers=ANN).status_code == 200
    assert [line["image"] for line in audited() if line["action"] == "label.save"] == ["case"]


def test_others_get_plain_ids(enter: Enter) -> None:
    """Browsers and programs send their log-in along with every request."""
    named = enter(token=TOKEN)
    assert named.post("/activelearning/first", headers=ANN).json()["id"] == "case"
    alone = enter()
    del alone.headers["user-agent"]
    assert alone.post("/activelearning/first").json()["id"] == "photo"


def test_the_same_with_keycloak(
    enter: Enter, app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = enter()
    addresses = ImageAddresses(client.app)
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(ImageAddresses, "is_valid", lambda _, signed: addresses_valid(signed))

    def addresses_valid(signed: str) -> bool:
        return signed == good

    good = addresses.signed("case")
    assert client.get(where(good)).status_code == 200
    assert client.get(where("case")).status_code == 401
    assert client.get(f"/datastore/image/info?image={good}").status_code == 401


def test_it_is_over_after_some_minutes(addresses: ImageAddresses) -> None:
    signed = addresses.signed("1.2.3_1")
    assert addresses.is_valid(signed)
    clock.now += SECONDS + 1
    assert not addresses.is_valid(signed)


def test_of_another_process_it_is_none(addresses: ImageAddresses) -> None:
    signed = addresses.signed("a~b / ü")
    assert addresses.is_valid(signed)
    assert not ImageAddresses(addresses._app, clock=clock).is_valid(signed)


def test_what_was_given_is_forgotten(addresses: ImageAddresses) -> None:
    call = Call(client="10.0.0.1", user="ann")
    signed = addresses.give(call, "case")
    assert addresses.with_given(call, {"case": 1}) == {"case": 1, signed: 1}
    assert addresses.with_given(call, {"other": 1}) == {"other": 1}
    assert addresses.with_given(Call(client="10.0.0.2", user="ann"), {"case": 1}) == {"case": 1}
    clock.now += SECONDS + 1
    assert addresses.with_given(call, {"case": 1}) == {"case": 1}
    addresses.give(Call(user="eva"), "photo")
    assert len(addresses._given) == 1
