"""Starting a server process, waiting for it, stopping it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.server.launch import (
    ALLOCATOR,
    ServerProcess,
    app_folder,
    free_port,
    start_server,
)

ANSWERING = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        # not ready at once
        known = self.headers.get("Authorization") == "Bearer a token"
        status = 503 if Handler.asked < 3 else 200 if known else int(sys.argv[2])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b'{"name": "it"}')
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
signal.pause()
"""


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **options)


@pytest.mark.parametrize(
    ("status", "token", "info"),
    [("200", None, {"name": "it"}), ("401", None, {}), ("401", "a token", {"name": "it"})],
)
def test_ready_when_info_answers(status: str, token: str | None, info: dict[str, str]) -> None:
    port = free_port("127.0.0.1", 0)
    server = ServerProcess(python(ANSWERING, str(port), status), "127.0.0.1", port)
    try:
        assert server.wait_until_ready(30, token) == info
        assert server.url == f"http://127.0.0.1:{port}"
    finally:
        server.stop()
    assert server.process.returncode is not None


def test_a_server_that_gives_up_is_told_at_once() -> None:
    server = ServerProcess(python("raise SystemExit(3)"), "127.0.0.1", free_port("127.0.0.1", 0))
    with pytest.raises(EspMedSamError, match="exit code 3"):
        server.wait_until_ready(30)


def test_a_server_that_never_answers_is_told() -> None:
    with python("input()", stdin=subprocess.PIPE) as process:
        server = ServerProcess(process, "127.0.0.1", free_port("127.0.0.1", 0))
        with pytest.raises(EspMedSamError, match="does not answer"):
            server.wait_until_ready(0.3)
        server.stop()


def test_a_server_that_does_not_stop_is_ended() -> None:
    with python(DEAF, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert ServerProcess(process, "127.0.0.1", 1).stop(timeout=0.2) == -9


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port} .*in use"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_foreign_host_is_told(host: str) -> None:
    with pytest.raises(InputError, match=host):
        free_port(host, 0)


def test_the_command_is_monai_label_s_own(tmp_path: Path) -> None:
    calls: list[tuple[list[str], dict[str, Any]]] = []

    def popen(command: list[str], **options: Any) -> Any:
        calls.append((command, options))

    server = start_server(
        tmp_path, "studies", host="0.0.0.0", port=0, conf={"models": "a,b"}, popen=popen,
        arguments=("--verbose", "ERROR"), environment={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    ((command, options),) = calls
    assert command[1:] == [
        "-m", "monailabel.main", "start_server", "--app", str(tmp_path), "--studies", "studies",
        "--host", "0.0.0.0", "--port", str(server.port), "--conf", "models", "a,b",
        "--verbose", "ERROR",
    ]  # fmt: skip
    assert options["env"]["OMP_NUM_THREADS"] == "1"
    assert options["env"]["PATH"]
    assert server.url == f"http://127.0.0.1:{server.port}"


def test_the_allocator_keeps_what_a_pass_frees_unless_the_admin_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1234")
    environments: list[dict[str, str]] = []

    def popen(command: list[str], **options: Any) -> Any:
        environments.append(options["env"])

    start_server(tmp_path, "studies", port=0, popen=popen, environment={"MALLOC_TOP_PAD_": "5678"})
    (environment,) = environments
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "1234"
    assert environment["MALLOC_TRIM_THRESHOLD_"] == ALLOCATOR["MALLOC_TRIM_THRESHOLD_"]
    assert environment["MALLOC_TOP_PAD_"] == "5678"


def test_the_app_is_found() -> None:
    assert (app_folder() / "lib" / "configs" / "esp_medsam.py").is_file()
