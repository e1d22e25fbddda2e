"""A training talks to the tracking server that was chosen, and to nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import esp_medsam_app
from esp_medsam_app.server.launch import start_server
from esp_medsam_app.telemetry import OFF

TESTS = Path(__file__).parents[1]
# where MLflow reports nothing by itself: this is to be like a hospital
SPARED = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TF_BUILD", "DO_NOT_TRACK", *OFF)


def trained(folder: Path, **environment: str) -> tuple[str, list[str]]:
    """What a training printed, and the hosts that it asked for beside this machine."""
    log = folder / "hosts"
    package = Path(esp_medsam_app.__file__).parents[1]
    paths = [TESTS / "e2e" / "no_network", TESTS, package]
    kept = {k: v for k, v in os.environ.items() if k not in SPARED and not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "support.small_training", str(folder)],
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
            "NETWORK_LOG": str(log),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, log.read_text().splitlines() if log.exists() else []


def test_a_training_asks_for_no_host(tmp_path: Path) -> None:
    printed, hosts = trained(tmp_path)
    assert "version 1" in printed
    # its own database
    assert (tmp_path / "training" / "mlflow.db").stat().st_size
    assert hosts == []


def test_servers_and_containers_are_told() -> None:
    started: list[dict[str, str]] = []

    def popen(*_: object, env: dict[str, str], **__: object) -> object:
        started.append(env)
        return None

    start_server(Path("app"), "studies", port=0, popen=popen)  # type: ignore[arg-type]
    assert started[0]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_DISABLE_TELEMETRY=true" in (TESTS.parent / "Dockerfile").read_text()


def test_who_wants_it_may_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    esp_medsam_app.switch_off()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
