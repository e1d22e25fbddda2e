"""`monailabel start_server` as a process of its own: starting, waiting, stopping.

Free of MONAI Label and torch, so that `esp-medsam serve` answers at once.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.telemetry import OFF

# our application around MONAI Label's, in place of its own
FRONT_DOOR = ("--uvicorn_app", "esp_medsam_app.server.asgi:app")

# For the C library (glibc) of the server process. A pass takes and frees hundreds of megabytes in
# pieces; by default each is asked of the system anew and cleared by it, a tenth to a fifth of a
# pass's time. What is larger than any of these pieces, such as a volume, goes back as before.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(512 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2048 * 2**20),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}

_POLL_SECONDS = 0.2
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def app_folder() -> Path:
    """The folder `apps/esp_medsam` beside the package.

    Raises:
        InputError: the package was installed without it.
    """
    folder = Path(__file__).resolve().parents[2] / "apps" / "esp_medsam"
    if not (folder / "main.py").is_file():
        raise InputError(
            "the app's folder is not there: the package was installed without it",
            path=folder,
            remedy="Get the project's sources and give its apps/esp_medsam with --app",
        )
    return folder


def free_port(host: str, port: int) -> int:
    """`port`, after a look that it can be listened on; any free one for 0.

    Raises:
        InputError: it is in use, not allowed, or the host is not this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # as the server itself will: connections that are just closing do not count
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot listen on {host}:{port} ({reason})",
            remedy="Choose another with --host and --port; --port 0 takes any that is free",
        ) from error


@dataclass(frozen=True)
class ServerProcess:
    """A running `monailabel start_server`.

    Attributes:
        process: of the server.
        host: where it answers; the loopback address if it listens everywhere.
        port: TCP.
    """

    process: subprocess.Popen[bytes]
    host: str
    port: int

    @property
    def url(self) -> str:
        """Address for viewers on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def wait_until_ready(self, timeout: float, token: str | None = None) -> dict[str, Any]:
        """Ask for `/info/` until it answers.

        Args:
            timeout: seconds.
            token: of the server's log-in, if it has one.

        Returns:
            What it answered; empty if the server wants another log-in first.

        Raises:
            EspMedSamError: the server has stopped, or does not answer in time.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            info = self._info(token)
            if info is not None:
                return info
            try:
                code = self.process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            raise EspMedSamError(
                f"the server has stopped while starting (exit code {code})",
                remedy="Its last lines above say why",
            )
        raise EspMedSamError(
            f"the server does not answer after {timeout:.0f} s",
            remedy="Its lines above may say why; --timeout gives it longer",
        )

    def stop(self, timeout: float = 15) -> int:
        """Ask the server to finish, end it if it does not within `timeout` seconds; exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _info(self, token: str | None) -> dict[str, Any] | None:
        # http.client knows no proxies: the server is on this machine
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request("GET", "/info/", headers=headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if response.status in (401, 403):
            return {}
        return dict(json.loads(body)) if response.status == 200 else None


def start_server(
    app: Path,
    studies: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    conf: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    output: int | None = None,
    popen: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
) -> ServerProcess:
    """Start `monailabel start_server` and return at once.

    Args:
        app: the app's folder.
        studies: folder of images or address of a DICOMweb server.
        host: address to listen on.
        port: TCP; 0 for any that is free.
        conf: the app's options, `--conf`.
        arguments: further ones of `monailabel start_server`.
        environment: of the process, in addition to this one's. `ALLOCATOR`, and that libraries
            report to nobody, holds where neither says otherwise.
        output: where its output goes, as in `subprocess`; beside ours by default.
        popen: for tests.

    Raises:
        InputError: the port cannot be listened on.
    """
    port = free_port(host, port)
    command = [sys.executable, "-m", "monailabel.main", "start_server"]
    command += ["--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
    for key, value in (conf or {}).items():
        command += ["--conf", key, value]
    process = popen(
        [*command, *arguments],
        env={**ALLOCATOR, **OFF, **_inherited(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        # a Ctrl-C shall reach this process only, which then stops the server in its own way
        start_new_session=True,
    )
    return ServerProcess(process, _EVERYWHERE.get(host, host), port)


def _inherited() -> dict[str, str]:
    """Our environment, less what ties a process to another server; see `children`."""
    return {key: value for key, value in os.environ.items() if key != "ESP_MEDSAM_SERVER_PID"}
