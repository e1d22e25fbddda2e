"""The front door around the app of the neighbouring tests, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from monailabel.config import settings as monai_settings
from monailabel.interfaces.utils import app as registry
from monailabel.utils.async_tasks import utils as tasks

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.door.settings import DoorSettings

MakeDoor = Callable[..., FrontDoor]
TOKEN, ADMIN_TOKEN = "a token of the annotators", "another token of the admins"


@pytest.fixture
def audit_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "audit" / "audit.jsonl"
    monkeypatch.setenv("ESP_MEDSAM_AUDIT_FILE", str(file))
    return file


@pytest.fixture
def make_door(
    app: EspMedSamApp, audit_file: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeDoor]:
    """Makes a front door with these settings, around `app`."""
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_APP_DIR", app.app_dir)
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", app.studies)
    monkeypatch.setitem(registry.apps, f"{app.app_dir}{app.studies}", app)
    monkeypatch.setattr(tasks, "background_tasks", {})
    monkeypatch.setattr(tasks, "background_processes", {})
    overrides = dict(endpoints.dependency_overrides)

    def make(**settings: Any) -> FrontDoor:
        return FrontDoor(DoorSettings(_env_file=None, **settings))

    yield make
    endpoints.dependency_overrides = overrides


@pytest.fixture
def enter(make_door: MakeDoor) -> Iterator[Callable[..., TestClient]]:
    """A client of a front door with these settings; without its life cycle."""
    clients = []

    def make(**settings: Any) -> TestClient:
        clients.append(TestClient(make_door(**settings), raise_server_exceptions=False))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def door(enter: Callable[..., TestClient]) -> TestClient:
    return enter()


@pytest.fixture
def audited(audit_file: Path) -> Callable[[], list[dict[str, Any]]]:
    """The lines of the audit."""

    def read() -> list[dict[str, Any]]:
        lines = audit_file.read_text().splitlines() if audit_file.exists() else []
        return [json.loads(line) for line in lines]

    return read


@pytest.fixture(
    params=[
        "front door",
        pytest.param("MONAI Label", marks=pytest.mark.xfail(strict=True, reason="0.8.5")),
    ]
)
def either(request: pytest.FixtureRequest) -> TestClient:
    """The front door, and MONAI Label without it: what the test shows is wrong there."""
    name = "door" if request.param == "front door" else "client"
    found: TestClient = request.getfixturevalue(name)
    return found
