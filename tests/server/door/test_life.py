"""The server's life: ready or not, its temporary files, what it measures, its end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from monailabel.config import settings as monai_settings

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.children import SERVER
from esp_medsam_app.server.door.metrics import Metrics
from esp_medsam_app.server.door.temporary import TemporaryFolder

Usage = namedtuple("Usage", "total used free")
SAMPLE = re.compile(r'esp_medsam_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? -?[0-9.e+-]+')
LEAVING = """
import os, signal, sys
from pathlib import Path
from esp_medsam_app.server.door.temporary import TemporaryFolder
folder = TemporaryFolder(Path(sys.argv[1])).open()
(folder / "patient.nii.gz").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def living(
    make_door: Callable[..., FrontDoor], app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch
) -> FrontDoor:
    """A front door whose life cycle can be run."""
    monkeypatch.setattr(EspMedSamApp, "on_init_complete", lambda self: None)
    Path(app.app_dir).mkdir()
    return make_door()


def test_ready_while_it_lives(living: FrontDoor) -> None:
    outside = TestClient(living, raise_server_exceptions=False)
    assert outside.get("/readyz").status_code == 503
    with TestClient(living) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.head("/healthz").status_code == 200
        assert client.post("/healthz").status_code == 405
        assert client.get("/info/").status_code == 200
    assert outside.get("/readyz").status_code == 503


def test_not_ready_when_a_disk_is_full_or_a_folder_is_gone(
    living: FrontDoor, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(living) as client:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, 1 << 40, 1 << 20))
            answer = client.get("/readyz")
            assert answer.status_code == 503
            told = answer.json()["detail"]
            # one disk, and what is on it
            assert re.search(r"the disk of temporary files and .*studies.* is full: 1 MB", told)
            assert "512 MB needed" in told
            assert str(studies) not in told
        monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", str(studies / "gone"))
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert str(studies) not in answer.text


def test_temporary_files_are_gone_with_the_server(living: FrontDoor, temporary: Path) -> None:
    with TestClient(living):
        folder = Path(tempfile.gettempdir())
        assert folder.parent == temporary
        assert os.environ["TMPDIR"] == str(folder)
        (folder / "left.nii.gz").touch()
        assert folder.stat().st_mode & 0o077 == 0
    assert list(temporary.iterdir()) == []
    assert tempfile.gettempdir() == str(temporary)


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    running = TemporaryFolder(tmp_path)
    alive = running.open()
    (tmp_path / "esp_medsam_other").mkdir()
    killed = subprocess.run([sys.executable, "-c", LEAVING, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob("*/patient.nii.gz"))) == 1
    other = TemporaryFolder(tmp_path)
    try:
        own = other.open()
        assert sorted(tmp_path.iterdir()) == sorted([alive, own, tmp_path / "esp_medsam_other"])
    finally:
        other.close()
        running.close()


def test_the_end_of_the_server_ends_its_children(
    living: FrontDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr("esp_medsam_app.server.asgi.end_children", lambda: ended.append(1))
    with TestClient(living):
        assert ended == []
    assert ended == [1]


def test_the_app_ties_its_children_and_opens_the_audit(
    app: EspMedSamApp, audit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVER, "")
    monkeypatch.setattr("esp_medsam_app.server.app.add_version_routes", lambda _: None)
    monkeypatch.setattr("monailabel.interfaces.app.MONAILabelApp.on_init_complete", lambda _: None)
    monkeypatch.setattr(app.active_learning.background, "start", lambda: None)
    app.on_init_complete()
    assert os.environ[SERVER] == str(os.getpid())


def test_metrics_can_be_read_by_prometheus(door: TestClient) -> None:
    door.get("/info/")
    door.post("/infer/esp_medsam_spots?image=photo")
    door.request("BREW", "/coffee" * 10)
    answer = door.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert [line for line in samples if not SAMPLE.fullmatch(line)] == []
    assert 'esp_medsam_requests_total{method="GET",route="info",status="200"} 1' in samples
    assert 'esp_medsam_request_seconds_count{route="infer"} 1' in samples
    assert 'esp_medsam_requests_total{method="OTHER",route="other",status="404"} 1' in samples
    assert any(line.startswith("esp_medsam_resident_bytes ") for line in samples)
    assert 'esp_medsam_running{lane="work"} 0' in samples


def test_histograms_add_up() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.3, 0.3, 1e6):
        metrics.seconds.observe(seconds, route='a"\n\\')
    text = metrics.text()
    label = 'route="a\\"\\n\\\\"'
    assert f'_bucket{{{label},le="0.01"}} 1\n' in text
    assert f'_bucket{{{label},le="0.5"}} 3\n' in text
    assert f'_bucket{{{label},le="300.0"}} 3\n' in text
    assert f'_bucket{{{label},le="+Inf"}} 4\n' in text
    assert f"_count{{{label}}} 4\n" in text


def test_a_gauge_that_cannot_be_read_hides_no_other() -> None:
    metrics = Metrics()
    metrics.gauge("broken", "x", lambda: 1 / 0)
    metrics.gauge("sound", "x", lambda: {"a": 1, "b": 0.5}, "kind")
    text = metrics.text()
    assert 'esp_medsam_sound{kind="a"} 1\nesp_medsam_sound{kind="b"} 0.5' in text
    assert "\nesp_medsam_broken " not in text


def test_a_web_socket_is_refused(living: FrontDoor) -> None:
    from starlette.websockets import WebSocketDisconnect

    with (
        TestClient(living) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/info/"),
    ):
        pass


def test_importing_the_module_makes_no_server() -> None:
    from esp_medsam_app.server import asgi

    assert "app" not in vars(asgi) or isinstance(asgi.app, FrontDoor)
    with pytest.raises(AttributeError):
        _ = asgi.nothing


def test_a_broken_answer_is_broken_off(
    make_door: Callable[..., FrontDoor], caplog: pytest.LogCaptureFixture
) -> None:
    from esp_medsam_app.server.door.answers import Answers
    from esp_medsam_app.server.door.redaction import Redaction

    async def breaking(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise OSError("disk")

    client = TestClient(Answers(breaking, Metrics(), lambda: Redaction([])))
    with pytest.raises(OSError, match="disk"):
        client.get("/x")
    assert "Broke off" in caplog.text
