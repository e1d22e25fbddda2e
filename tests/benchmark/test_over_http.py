"""What the requests measure, on a server of a few lines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from esp_medsam_app.benchmark import over_http
from esp_medsam_app.benchmark.over_http import measure_http, write_pictures
from esp_medsam_app.errors import EspMedSamError


class FakeServer:
    """Answers every request, or refuses it; keeps what it was started with and asked for."""

    def __init__(self, status: int = 200) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(self.path)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b'{"detail": "no such thing"}')

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.host, self.port = "127.0.0.1", self._server.server_port
        self.asked: list[str]
        self.started: dict[str, Any] = {}
        self.stopped = False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def start(self, app: Path, studies: str, **options: Any) -> FakeServer:
        self.started = {"app": app, "studies": studies, **options}
        return self

    def wait_until_ready(self, timeout: float) -> dict[str, Any]:
        return {}

    def stop(self) -> int:
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()
        return 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer()
    monkeypatch.setattr(over_http, "start_server", fake.start)
    yield fake
    assert fake.stopped


def test_each_image_is_asked_for_twice_in_a_row(server: FakeServer, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = measure_http(
        tmp_path / "bundle", "ct_liver", "cpu", tmp_path, images=2, slices=3,
        on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    images = ["picture_2", *["picture_0"] * 2, *["picture_1"] * 2, *["ct"] * 2]
    assert server.asked == [
        f"/infer/esp_medsam_ct_liver?image={image}&output=image" for image in images
    ]
    assert [(row.image, row.first.calls, row.again.calls) for row in report.figures] == [
        ("picture", 2, 2), ("volume", 1, 1),
    ]  # fmt: skip
    assert steps[-1] == (7, 7)
    assert server.started["conf"]["bundle"] == str(tmp_path / "bundle")
    assert server.started["conf"]["check_images"] == "false"
    assert {path.name for path in Path(server.started["studies"]).iterdir()} >= {
        "picture_0.png", "picture_1.png", "picture_2.png", "ct.nii.gz",
    }  # fmt: skip


def test_what_the_server_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refusing = FakeServer(status=422)
    monkeypatch.setattr(over_http, "start_server", refusing.start)
    with pytest.raises(EspMedSamError, match="422: no such thing"):
        measure_http(tmp_path / "bundle", "ct_liver", "cpu", tmp_path, images=1)
    assert refusing.stopped


def test_pictures_differ(tmp_path: Path) -> None:
    """Else the second would be known from the first."""
    names = write_pictures(tmp_path, 2)
    first, second = (Image.open(tmp_path / f"{name}.png").tobytes() for name in names)
    assert first != second
