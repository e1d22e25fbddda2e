"""Who may do what: nobody has to log in, a token, Keycloak; and which web pages may ask."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from fastapi.testclient import TestClient
from monailabel.client import MONAILabelClient
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user import auth
from support.keycloak import Keycloak

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.door import identity
from esp_medsam_app.server.door.settings import DoorSettings

TOKEN, ADMIN = "a token of the annotators", "another token of the admins"
Enter = Callable[..., TestClient]


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


# --- token ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(TOKEN[:-1]), bearer(""), basic("ann", "wrong"),
     {"authorization": TOKEN}, {"authorization": "Basic ????"}, {"authorization": "Basic /w=="},
     bearer(f"for.YW5u.{TOKEN}x"), bearer("for..")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/info/"), ("GET", "/"), ("GET", "/ohif/"), ("GET", "/static/ohif/app-config.js"),
     ("GET", "/openapi.json"), ("GET", "/proxy/dicom/qido/studies"), ("GET", "/metrics"),
     ("POST", "/infer/esp_medsam_spots?image=photo"), ("GET", "/auth/token/valid"),
     ("GET", "/nowhere")],
)  # fmt: skip
def test_nobody_comes_in_without_the_token(
    enter: Enter, method: str, path: str, headers: dict[str, str]
) -> None:
    response = enter(token=TOKEN).request(method, path, headers=headers)
    assert response.status_code == 401
    assert "basic" in response.headers["www-authenticate"].lower()
    assert "log-in" in response.json()["detail"]


@pytest.mark.parametrize("headers", [bearer(TOKEN), basic("ann", TOKEN), basic("", TOKEN)])
def test_with_the_token_everything_is_there(enter: Enter, headers: dict[str, str]) -> None:
    door = enter(token=TOKEN)
    assert door.get("/info/", headers=headers).status_code == 200
    assert door.get("/logs/", headers=headers).status_code == 404
    for path in ("/healthz", "/auth/"):
        assert door.get(path).status_code == 200


def test_admins_have_a_token_of_their_own(enter: Enter) -> None:
    door = enter(token=TOKEN, admin_token=ADMIN)
    for method, path in (
        ("POST", "/train/esp_medsam_spots"), ("DELETE", "/train/"), ("PUT", "/model/x"),
        ("GET", "/model/x"), ("GET", "/logs/"), ("DELETE", "/datastore/image?id=case"),
        ("DELETE", "/datastore/?id=case"), ("DELETE", "/datastore/label?id=case&tag=final"),
        ("POST", "/batch/infer/esp_medsam_spots"), ("POST", "/versions/spots/restore?number=0"),
        ("GET", "/metrics"),
    ):  # fmt: skip
        refused = door.request(method, path, headers=bearer(TOKEN))
        assert refused.status_code == 403, path
        assert "admins" in refused.json()["detail"]
    assert door.get("/info/", headers=bearer(TOKEN)).status_code == 200
    assert door.get("/metrics", headers=bearer(ADMIN)).status_code == 200
    removed = door.delete("/datastore/image?id=case", headers=basic("eva", ADMIN))
    assert removed.status_code == 200


def test_slicer_logs_in_as_with_keycloak(
    enter: Enter, audited: Callable[[], Any], studies: Path
) -> None:
    door = enter(token=TOKEN)
    assert door.get("/auth/").json()["enabled"] is True
    refused = door.post("/auth/token", data={"username": "ann", "password": "guess"})
    assert refused.status_code == 401
    told = door.post("/auth/token", data={"username": "Änn", "password": TOKEN}).json()
    headers = bearer(told["access_token"])
    assert door.get("/auth/token/valid", headers=headers).json()["username"] == "Änn"
    file = {"label": ("a.png", (studies / "photo.png").read_bytes())}
    info = {"params": '{"label_info": [{"name": "spot", "idx": 100}, {"name": "x", "idx": 7}]}'}
    door.put("/datastore/image/info?image=photo", headers=headers, data={"info": '{"seen": 1}'})
    door.put("/datastore/label?image=photo", headers=headers, files=file, data=info)
    assert [line["user"] for line in audited()][:1] == ["Änn"]
    assert door.get("/datastore/image/info?image=photo", headers=headers).json()["user"] == "Änn"
    # what the module's own client makes of it
    client = MONAILabelClient("http://server")
    client.update_auth(told)
    assert door.get("/info/", headers=client._headers).status_code == 200


def test_comparing_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(identity.hmac, "compare_digest", compare)
    assert identity.same("guess", "token") is False
    assert identity.same("tökén", "tökén") is True
    assert identity.same("", None) is identity.same("", "") is False
    assert len(compared) == 2


@pytest.mark.parametrize(
    ("variables", "named"),
    [({"TOKEN": "short"}, "ESP_MEDSAM_TOKEN"), ({"ADMIN_TOKEN": ADMIN}, "ESP_MEDSAM_TOKEN"),
     ({"MAX_UPLOAD_MB": "much"}, "ESP_MEDSAM_MAX_UPLOAD_MB"),
     ({"INFER_SLOTS": "0"}, "ESP_MEDSAM_INFER_SLOTS")],
)  # fmt: skip
def test_settings_of_no_use_are_named_without_their_value(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], named: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"ESP_MEDSAM_{name}", value)
    with pytest.raises(InputError, match=named) as caught:
        DoorSettings.read()
    assert "short" not in str(caught.value)
    assert ADMIN not in str(caught.value)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_MEDSAM_TOKEN", "")
    monkeypatch.setenv("ESP_MEDSAM_HOSTS", "label.site.org, *.site.org")
    monkeypatch.setenv("ESP_MEDSAM_INFER_QUEUE", "7")
    settings = DoorSettings.read()
    assert settings.token is None
    assert settings.hosts == ["label.site.org", "*.site.org"]
    assert settings.infer_queue == 7


# --- Keycloak ------------------------------------------------------------------------------------


@pytest.fixture
def keycloak(monkeypatch: pytest.MonkeyPatch) -> Keycloak:
    found = Keycloak()
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "get_public_key", lambda realm: found.public)
    return found


def test_keycloak_s_users_come_in(either: TestClient, keycloak: Keycloak) -> None:
    """MONAI Label 0.8.5 names no algorithms, without which PyJWT 2 refuses every token."""
    headers = keycloak.log_in("monailabel-user")
    assert either.get("/info/", headers=headers).status_code == 200


def test_keycloak_s_roles(door: TestClient, keycloak: Keycloak) -> None:
    user = keycloak.log_in("monailabel-user")
    annotator = keycloak.log_in("monailabel-annotator", "monailabel-user")
    assert door.post("/infer/esp_medsam_spots?image=photo", headers=user).status_code == 200
    submit = {"data": {"info": "{}"}, "headers": user}
    assert door.put("/datastore/image/info?image=photo", **submit).status_code == 403
    submit["headers"] = annotator
    assert door.put("/datastore/image/info?image=photo", **submit).status_code == 200
    for headers in (user, annotator):
        for method, path in (("PUT", "/model/x"), ("GET", "/logs/"), ("POST", "/train/x")):
            assert door.request(method, path, headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/info/", "/metrics", "/proxy/dicom/qido/studies", "/datastore/"])
def test_who_keycloak_does_not_know_stays_outside(
    door: TestClient, keycloak: Keycloak, path: str
) -> None:
    stranger = Keycloak()
    unsigned = jwt.encode({"realm_access": {"roles": ["monailabel-user"]}}, "", algorithm="none")
    forged = jwt.encode({"preferred_username": "eve"}, "x" * 32, algorithm="HS256")
    for headers in (
        {}, bearer("x"), bearer(unsigned), bearer(forged), stranger.log_in("monailabel-user"),
        keycloak.log_in("monailabel-user", exp=int(time.time()) - 10),
    ):  # fmt: skip
        assert door.get(path, headers=headers).status_code == 401
    without_roles = keycloak.headers({"realm_access": 3})
    assert door.get(path, headers=without_roles).status_code == 403


def test_a_keycloak_that_is_away_is_told(
    door: TestClient, keycloak: Keycloak, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(realm: str) -> str:
        raise requests.ConnectionError("http://keycloak:8080")

    monkeypatch.setattr(auth, "get_public_key", away)
    response = door.get("/info/", headers=keycloak.log_in("monailabel-user"))
    assert response.status_code == 503
    assert "8080" not in response.text


def test_one_log_in_only(make_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    with pytest.raises(InputError, match="ESP_MEDSAM_TOKEN"):
        make_door(token=TOKEN)


# --- web pages -----------------------------------------------------------------------------------

FOREIGN = {"origin": "https://evil.example"}


def test_foreign_pages_read_nothing(either: TestClient) -> None:
    response = either.get("/info/", headers=FOREIGN)
    assert "access-control-allow-origin" not in response.headers
    asked = {**FOREIGN, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in either.options("/info/", headers=asked).headers


def test_foreign_pages_change_nothing(either: TestClient) -> None:
    response = either.post("/infer/esp_medsam_spots?image=photo", headers=FOREIGN)
    assert response.status_code == 403


@pytest.mark.parametrize("origin", ["http://testserver", "http://TESTSERVER"])
def test_the_server_s_own_pages_may(door: TestClient, origin: str) -> None:
    own = {"origin": origin}
    assert door.post("/infer/esp_medsam_spots?image=photo", headers=own).status_code == 200
    for odd in ("null", "http://[", "http://testserver.evil.example"):
        headers = {"origin": odd}
        assert door.post("/infer/esp_medsam_spots?image=photo", headers=headers).status_code == 403


def test_configured_pages_may(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic import AnyHttpUrl

    # as MONAI Label reads it, with a slash at the end that no browser sends
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_CORS_ORIGINS", [AnyHttpUrl("https://pacs.x")])
    door = enter()
    headers = {"origin": "https://pacs.x"}
    response = door.post("/infer/esp_medsam_spots?image=photo", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://pacs.x"
    refused = door.get("/nowhere", headers=headers)
    assert refused.headers["access-control-allow-origin"] == "https://pacs.x"
    assert "access-control-allow-origin" not in door.get("/info/", headers=FOREIGN).headers


@pytest.mark.parametrize(
    ("host", "status"),
    [("label.site.org", 200), ("LABEL.site.org:8443", 200), ("a.lan", 200), ("lan", 400),
     ("evil.example", 400), ("label.site.org.evil.example", 400), ("[::1]:8000", 200), ("", 400)],
)  # fmt: skip
def test_only_the_configured_names(enter: Enter, host: str, status: int) -> None:
    door = enter(hosts=["label.site.org", "*.lan", "::1"])
    assert door.get("/healthz", headers={"host": host}).status_code == status
