"""Keycloak's tokens: who made them, for whom, until when; and who may do what with them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user import auth
from monailabel.endpoints.user.auth import RBAC
from support.keycloak import Keycloak

from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.door.access import Role, access_of
from esp_medsam_app.server.pacs.routes import add_dicom_seg_route
from esp_medsam_app.server.version_routes import add_version_routes

USER, ANNOTATOR, ADMIN = "monailabel-user", "monailabel-annotator", "monailabel-admin"
REALM, CLIENT = "http://localhost:8080/realms/monailabel", "monailabel-app"


@pytest.fixture
def keycloak(monkeypatch: pytest.MonkeyPatch) -> Keycloak:
    found = Keycloak()
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "get_public_key", lambda realm: found.public)
    return found


@pytest.fixture
def with_ours() -> Iterator[FastAPI]:
    """MONAI Label's endpoints with those that the app adds on starting."""
    before = list(endpoints.router.routes)
    marks = dict(endpoints.state._state)
    add_version_routes(endpoints)
    add_dicom_seg_route(endpoints)
    yield endpoints
    endpoints.router.routes[:] = before
    endpoints.state._state = marks
    endpoints.openapi_schema = None


@pytest.mark.parametrize("claims", [
    {"exp": None}, {"exp": int(time.time()) - 60}, {"exp": "never"},
    {"iss": None}, {"iss": "http://localhost:8080/realms/master"}, {"iss": f"{REALM}2"},
    {"iss": "https://evil.example/realms/monailabel"},
    {"azp": None}, {"azp": "another-app"}, {"azp": "another-app", "aud": ["account", "x"]},
    {"azp": None, "aud": None}, {"azp": f"{CLIENT}-2"}, {"azp": [CLIENT]},
    {"nbf": int(time.time()) + 3600},
    {"typ": "ID"}, {"typ": "Refresh"}, {"typ": "Logout"},
])  # fmt: skip
@pytest.mark.parametrize("path", ["/info/", "/auth/token/valid"])
def test_a_token_that_is_not_for_this_server(
    door: TestClient, keycloak: Keycloak, path: str, claims: dict[str, Any]
) -> None:
    assert door.get(path, headers=keycloak.log_in(USER, **claims)).status_code == 401


@pytest.mark.parametrize("claims", [
    {}, {"azp": "viewer", "aud": CLIENT}, {"azp": "viewer", "aud": ["account", CLIENT]},
    {"aud": None}, {"typ": None},
])  # fmt: skip
def test_a_token_that_is(door: TestClient, keycloak: Keycloak, claims: dict[str, Any]) -> None:
    headers = keycloak.log_in(USER, **claims)
    assert door.get("/info/", headers=headers).status_code == 200


def test_issuer_and_audience_can_be_named(
    enter: Callable[..., TestClient], keycloak: Keycloak
) -> None:
    """As where Keycloak has one address for people and another for servers."""
    issuer, audience = "https://sso.site.org/realms/x", "labelling"
    door = enter(keycloak_issuer=issuer, keycloak_audience=audience)
    told = keycloak.log_in(USER, iss=issuer, azp=audience)
    assert door.get("/info/", headers=told).status_code == 200
    assert door.get("/info/", headers=keycloak.log_in(USER)).status_code == 401


def test_a_token_signed_with_the_public_key_as_a_secret(
    door: TestClient, keycloak: Keycloak
) -> None:
    told = {"iss": REALM, "azp": CLIENT, "exp": int(time.time()) + 60}
    headers = [
        {"authorization": f"Bearer {jwt.encode(told, keycloak.public[27:59], algorithm='HS256')}"},
        {"authorization": f"Bearer {jwt.encode(told, '', algorithm='none')}"},
    ]
    assert [door.get("/info/", headers=one).status_code for one in headers] == [401, 401]


def test_metrics_are_the_admins(door: TestClient, keycloak: Keycloak) -> None:
    for roles, status in (((USER,), 403), ((USER, ANNOTATOR), 403), ((USER, ADMIN), 200)):
        for path in ("/metrics", "/metrics/"):
            found = door.get(path, headers=keycloak.log_in(*roles)).status_code
            assert found == status


def test_only_annotators_store_in_the_pacs(
    door: TestClient, keycloak: Keycloak, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes another role than writing."""
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9/dicom-web")
    headers = {"content-type": "multipart/related; boundary=x"}
    for path in ("studies", "studies/1.2.3", "stow/studies"):
        address = f"/proxy/dicom/{path}"
        user = {**headers, **keycloak.log_in(USER)}
        assert door.post(address, headers=user, content=b"x").status_code == 403
        annotator = {**headers, **keycloak.log_in(USER, ANNOTATOR)}
        # as far as the PACS, which is not there
        assert door.post(address, headers=annotator, content=b"x").status_code == 503
    assert door.get("/proxy/dicom/studies", headers=keycloak.log_in(USER)).status_code == 503


def test_a_dicom_seg_is_for_every_user(
    with_ours: FastAPI, make_door: Callable[..., FrontDoor], keycloak: Keycloak
) -> None:
    door = TestClient(make_door(), raise_server_exceptions=False)
    address = "/infer/esp_medsam_spots?image=photo&output=dicom_seg"
    told = door.post(address, headers=keycloak.log_in(USER))
    # of a folder's image there is none
    assert (told.status_code, "no PACS" in told.text) == (422, True)
    assert door.post(address, headers=keycloak.log_in("guest")).status_code == 403
    assert door.post(address).status_code == 401


def test_every_route_asks_for_the_role_that_the_table_has(
    with_ours: FastAPI, make_door: Callable[..., FrontDoor]
) -> None:
    """The gate decides before a body is read; MONAI Label's routes name roles themselves."""
    door = make_door()
    named = {USER: Role.USER, ANNOTATOR: Role.ANNOTATOR, ADMIN: Role.ADMIN}
    ours, theirs = asked(door._rooms), asked(with_ours)
    # the first route of an address answers
    for (method, path), roles in {**theirs, **ours}.items():
        if path.startswith("/proxy/"):
            # ours answers before them, and tells reading from writing
            continue
        wanted = {named[role] for role in roles if role in named}
        assert not wanted or access_of(method, path).role in wanted, (method, path)
    assert len(ours) > 30
    assert len(theirs) > 30


def asked(app: FastAPI) -> dict[tuple[str, str], list[str]]:
    """The roles of all routes, by method and path."""
    found: dict[tuple[str, str], list[str]] = {}
    for context in iter_route_contexts(app.routes):
        route = context._effective_route
        dependant = getattr(route, "dependant", None)
        if dependant is None:
            continue
        checks = [one.call for one in dependant.dependencies if isinstance(one.call, RBAC)]
        path = re.sub(r"{([a-z_]+)(:path)?}", r"\1", str(context.path))
        for method in sorted(getattr(route, "methods", None) or ()):
            found.setdefault((method, path), [one.roles for one in checks])
    return found


def test_the_audit_tells_the_role(
    door: TestClient, keycloak: Keycloak, audited: Callable[[], list[dict[str, Any]]]
) -> None:
    describe = {"data": {"info": '{"seen": 1}'}}
    annotator, admin = keycloak.log_in(USER, ANNOTATOR), keycloak.log_in(USER, ANNOTATOR, ADMIN)
    for headers in (annotator, admin):
        door.put("/datastore/image/info?image=photo", headers=headers, **describe)
    assert [line["role"] for line in audited()] == ["annotator", "admin"]


def test_the_audit_tells_the_token_s_role(
    enter: Callable[..., TestClient], audited: Callable[[], list[dict[str, Any]]]
) -> None:
    tokens = ["a token of the annotators", "another token of the admins"]
    door = enter(token=tokens[0], admin_token=tokens[1])
    for token in tokens:
        door.put(
            "/datastore/image/info?image=photo",
            headers={"authorization": f"Bearer {token}"},
            data={"info": "{}"},
        )
    assert [line["role"] for line in audited()] == ["annotator", "admin"]
    enter().put("/datastore/image/info?image=photo", data={"info": "{}"})
    assert audited()[-1]["role"] == "none"
