"""`esp-medsam serve`: what is told before and around the server."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from support.fake_server import ORGANS, SPOTS
from typer.testing import CliRunner

from esp_medsam_app.commands import serve
from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.server import launch

INFO = {"models": {"esp_medsam_ct_organs": {}}, "datastore": {"total": 2}}


class FakeServer:
    """A server process that is ready at once and stopped by Ctrl-C."""

    url = "http://127.0.0.1:8123"

    def __init__(self, wait: Callable[[], int]) -> None:
        self.process = SimpleNamespace(
            stdout=io.BytesIO(b"USING:: app\n[ERROR] it broke\n"), wait=wait
        )
        self.ready: Callable[[], dict[str, Any]] = lambda: INFO
        self.stopped = 0

    def wait_until_ready(self, timeout: float, token: str | None = None) -> dict[str, Any]:
        self.token = token
        return self.ready()

    def stop(self) -> int:
        self.stopped += 1
        return 0


class Run:
    """Runs the command around a fake server and keeps how it was started."""

    def __init__(self, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.started: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        monkeypatch.setattr(launch, "start_server", self._start)
        bundle = SimpleNamespace(modalities={m.name: m for m in (ORGANS, SPOTS)})
        monkeypatch.setattr("esp_medsam_app.weights.load_bundle", lambda path: bundle)

    def _start(self, *arguments: Any, **options: Any) -> FakeServer:
        self.started.append((arguments, options))
        return self.server

    def __call__(self, *arguments: object) -> Any:
        app = typer.Typer()
        serve.register(app)
        app.callback()(lambda: None)
        return CliRunner().invoke(app, ["serve", "--port", "0", *map(str, arguments)])


def ctrl_c() -> int:
    raise KeyboardInterrupt


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(FakeServer(ctrl_c), monkeypatch)


def test_ready_tells_what_to_open(run: Run, studies: Path) -> None:
    result = run("--studies", studies)
    assert result.exit_code == 0, result.output
    for text in (
        "ready at http://127.0.0.1:8123",
        "esp_medsam_ct_organs",
        f"{studies} (2 images)",
        "3D Slicer",
        "needs studies on a DICOMweb server",
        "http://127.0.0.1:8123/info/",
        "The server has stopped",
    ):
        assert text in result.output
    assert "USING" not in result.output
    assert run.server.stopped == 1


def test_with_a_token_the_banner_tells_as_much(
    run: Run, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESP_MEDSAM_TOKEN", "x" * 16)
    told = run("--studies", studies).output
    assert run.server.token == "x" * 16
    assert "esp_medsam_ct_organs" in told
    assert "(2 images)" in told
    assert "log-in     any user name, the token" in told
    assert "x" * 16 not in told


def test_with_keycloak_the_banner_says_what_it_cannot_know(run: Run, studies: Path) -> None:
    run.server.ready = dict
    told = run("--studies", studies).output
    assert "?" not in told
    assert "told after the log-in" in told
    assert "with Keycloak" in told


def test_a_pacs_that_is_away_is_told(run: Run) -> None:
    away = {"total": 0, "completed": 0, "problem": "the PACS does not answer (ConnectTimeout)"}
    run.server.ready = lambda: {**INFO, "datastore": away}
    told = run("--studies", "http://archive/dicom-web").output
    assert "(not listed, 0 images known from before)" in told
    assert "Warning: the PACS does not answer (ConnectTimeout)" in told
    assert "doctor --studies http://archive/dicom-web" in told


def test_a_profile_reaches_the_app(run: Run, studies: Path) -> None:
    run("--studies", studies, "--profile", "full")
    assert run.started[0][1]["conf"]["profile"] == "full"
    missing = run("--studies", studies, "--profile", "tiny")
    assert missing.exit_code != 0
    assert len(run.started) == 1


def test_an_archive_can_be_opened_in_ohif(run: Run) -> None:
    result = run("--studies", "http://archive/dicom-web")
    assert "http://127.0.0.1:8123/ohif/" in result.output
    assert run.started[0][0][1] == "http://archive/dicom-web"


def test_options_reach_the_app(run: Run, studies: Path, tmp_path: Path) -> None:
    run(
        "--studies",
        studies,
        "--models",
        "spots",
        "--bundle",
        tmp_path,
        "--device",
        "cpu",
        "--preload",
        "--quality",
        "fast",
    )
    ((arguments, options),) = run.started
    assert arguments == (launch.app_folder(), str(studies))
    assert options["conf"] == {
        "models": "spots",
        "bundle": str(tmp_path.resolve()),
        "device": "cpu",
        "preload": "true",
        "quality": "fast",
        "log_level": "INFO",
    }
    assert options["host"] == "127.0.0.1"
    assert options["arguments"] == (
        *launch.FRONT_DOOR, "--verbose", "WARNING", "--log_level", "warning"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("host", "token", "keycloak", "warned"),
    [("0.0.0.0", "", "", True), ("127.0.0.1", "", "", False), ("0.0.0.0", "x" * 16, "", False),
     ("0.0.0.0", "", "true", False), ("0.0.0.0", "", "false", True)],
)  # fmt: skip
def test_a_server_for_everybody_is_warned_of(
    run: Run,
    studies: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    token: str,
    keycloak: str,
    warned: bool,
) -> None:
    monkeypatch.setenv("ESP_MEDSAM_TOKEN", token)
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", keycloak)
    assert (
        "everybody in the network" in run("--studies", studies, "--host", host).output
    ) is warned


def test_everything_is_written_below_one_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(output: Path) -> SimpleNamespace:
        (output / "studies").mkdir(parents=True)
        (output / "studies" / "sample.png").touch()
        return SimpleNamespace(folder=output)

    monkeypatch.setattr("esp_medsam_app.samples.build_sample_data", build)
    data = tmp_path / "data"
    (data / "app" / "lib").mkdir(parents=True)
    (data / "app" / "lib" / "of_an_earlier_release.py").touch()
    (data / "app" / "model").mkdir()
    (data / "app" / "model" / "kept").touch()
    result = run("--data", data)
    assert result.exit_code == 0, result.output
    ((arguments, options),) = run.started
    assert arguments == (data / "app", str(data / "studies"))
    assert all(Path(path).is_relative_to(data) for path in options["environment"].values())
    assert (data / "studies" / "sample.png").is_file()
    assert (data / "app" / "main.py").read_bytes() == (launch.app_folder() / "main.py").read_bytes()
    assert not (data / "app" / "lib" / "of_an_earlier_release.py").exists()
    assert (data / "app" / "model" / "kept").exists()
    # the second time it is there
    monkeypatch.setattr("esp_medsam_app.samples.build_sample_data", None)
    assert run("--data", data).exit_code == 0
    assert run.started[1][0] == arguments


def test_sample_data_by_default(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    built: list[Path] = []

    def build(output: Path) -> SimpleNamespace:
        built.append(output)
        return SimpleNamespace(folder=tmp_path / output)

    monkeypatch.setattr("esp_medsam_app.samples.build_sample_data", build)
    run()
    assert built == [Path("sample_data/built")]
    assert run.started[0][0][1] == str(tmp_path / "sample_data/built/studies")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--studies", "nowhere"], "nowhere: there is no such folder"),
        (["--studies", __file__], "not a folder"),
        (["--models", "knee"], "esp_medsam_spots"),
        (["--device", "tpu"], "tpu"),
        (["--app", "nowhere"], "main.py"),
        (["--log-level", "loud"], "WARNING"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    run: Run, arguments: list[str], told: str
) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, EspMedSamError)
    assert told in str(result.exception)
    assert run.started == []


@pytest.mark.parametrize("which", ["app", "studies"])
def test_folders_must_be_writable(
    run: Run, studies: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    folder = studies if which == "studies" else launch.app_folder()
    # file permissions do not stop a test that runs as root
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != folder)
    result = run("--studies", studies)
    assert isinstance(result.exception, EspMedSamError)
    assert f"{folder}: the server cannot write" in str(result.exception)
    assert run.started == []


def test_a_port_in_use(run: Run, studies: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("--studies", studies, "--port", port)
    assert isinstance(result.exception, EspMedSamError)
    assert f"{port}" in str(result.exception)
    assert "--port" in str(result.exception)


def test_a_failed_start_shows_everything(run: Run, studies: Path) -> None:
    def fail() -> dict[str, Any]:
        raise EspMedSamError("the server has stopped while starting")

    run.server.ready = fail
    result = run("--studies", studies)
    assert isinstance(result.exception, EspMedSamError)
    assert "USING:: app" in result.output
    assert "it broke" in result.output
    assert run.server.stopped


def test_a_server_that_stops_by_itself_is_told(run: Run, studies: Path) -> None:
    run.server.process.wait = lambda: 3
    result = run("--studies", studies)
    assert isinstance(result.exception, EspMedSamError)
    assert "exit code 3" in str(result.exception)


def test_kill_stops_the_server_too(run: Run, studies: Path) -> None:
    def killed() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    run.server.process.wait = killed
    result = run("--studies", studies)
    assert result.exit_code == 0
    assert run.server.stopped == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, typer; from esp_medsam_app.commands import serve; "
        "serve.register(typer.Typer()); "
        "import esp_medsam_app.server.launch; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
