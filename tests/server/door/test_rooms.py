"""Which endpoints of MONAI Label's are still reached, and by which paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from monailabel.config import settings as monai_settings
from starlette.testclient import TestClient as AtRoot

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.asgi import FrontDoor

# they read, take no files and no parameters worth the name, or stop what runs
LEFT = {
    ("GET", "/info/"), ("GET", "/datastore/"), ("DELETE", "/scoring/"), ("GET", "/favicon.ico"),
    ("GET", "/openapi.json"),
}  # fmt: skip
# these are answered before
BEFORE = ("/proxy/dicom/",)
OURS_BESIDE = ("/versions/",)


def described(app: Any) -> set[tuple[str, str]]:
    """Methods and paths of an application's routes, those in routers too."""
    found: set[tuple[str, str]] = set()
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found |= described(inner)
        found |= {(method, route.path) for method in getattr(route, "methods", None) or ()}
    return found


def test_nothing_of_monai_label_s_is_reached_but_what_is_harmless(
    make_door: Callable[..., FrontDoor],
) -> None:
    ours = described(make_door()._rooms)
    theirs = {
        (method, path)
        for method, path in described(endpoints)
        if not path.startswith((*BEFORE, *OURS_BESIDE)) and method != "HEAD"
    }
    assert ("POST", "/infer/{model}") in theirs
    shadowed = {(method, path) for method, path in theirs if (method, path) in ours}
    assert theirs - shadowed - LEFT == set()


def test_whatever_stands_before_the_path_is_no_way_around(
    make_door: Callable[..., FrontDoor],
) -> None:
    door = make_door(token="x" * 16, admin_token="y" * 16)
    client = AtRoot(door, root_path="/label", raise_server_exceptions=False)
    headers = {"authorization": f"Bearer {'x' * 16}"}
    assert client.get("/info/", headers=headers).status_code == 200
    assert client.get("/healthz").status_code == 200
    assert client.delete("/datastore/image?id=case", headers=headers).status_code == 403
    assert client.get("/proxy/dicom/../system", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "path", ["/train", "//train/x", "/train//x", "/./train/x", "/TRAIN/x", "/infer/../train/x"]
)
def test_other_spellings_are_no_way_around(enter: Callable[..., TestClient], path: str) -> None:
    client = enter(token="x" * 16, admin_token="y" * 16)
    headers = {"authorization": f"Bearer {'x' * 16}"}
    answer = client.post(path, headers=headers, follow_redirects=True)
    assert answer.status_code in (403, 404, 405)


def test_a_second_set_of_endpoints_is_refused(
    make_door: Callable[..., FrontDoor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_API_STR", "/api")
    with pytest.raises(InputError, match="MONAI_LABEL_API_STR"):
        make_door()
