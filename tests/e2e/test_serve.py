"""`esp-medsam serve` and start-up errors, as processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.real_server import START_SECONDS, copy_app, small_studies

from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.server.launch import start_server

pytestmark = pytest.mark.e2e

ESP_MEDSAM = [sys.executable, "-c", "from esp_medsam_app.cli import main; main()"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions")}


def test_serve_until_ctrl_c(samples: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    small_studies(samples, tmp_path)
    options = ["--studies", tmp_path / "studies", "--app", copy_app(tmp_path), "--port", 0]
    options += ["--models", "xray_chest"]
    process = subprocess.Popen(
        [*ESP_MEDSAM, "serve", *map(str, options)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell starts what runs in its background deaf to Ctrl-C, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        printed = ""
        while "Ctrl-C stops it" not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        found = re.search(r"ready at (http://127\.0\.0\.1:\d+)", printed)
        assert found, printed
        assert "USING::" not in printed
        info = requests.get(f"{found[1]}/info/", timeout=60).json()
        assert list(info["models"]) == ["esp_medsam_xray_chest"]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0, rest
        assert "The server has stopped" in rest
        assert "Traceback" not in rest
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{found[1]}/info/", timeout=5)
    finally:
        process.kill()
        process.communicate()


def test_start_server_with_an_unknown_model(tmp_path: Path, environment: dict[str, str]) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        server = start_server(
            copy_app(tmp_path),
            str(tmp_path / "studies"),
            port=0,
            conf={"models": "knee"},
            environment=environment,
            output=output.fileno(),
        )
    with pytest.raises(EspMedSamError, match="exit code"):
        server.wait_until_ready(START_SECONDS)
    printed = log.read_text()
    assert "there is no model 'knee'" in printed
    assert "esp_medsam_xray_chest" in printed
