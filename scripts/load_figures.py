"""How long viewers wait while many of them ask at the same time.

Starts a server of its own on pictures drawn here, and asks from this process:

    python scripts/load_figures.py [--clients 64] [--seconds 20] [--submits 60]

`info`: each client asks for `/info/` again as soon as it is answered. `submit`: one client after
another sends a label, and then eight at the same time. Clients and server share the machine's
cores, as on a workstation.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from esp_medsam_app.benchmark.over_http import write_pictures
from esp_medsam_app.server.data_folder import DataFolder
from esp_medsam_app.server.launch import FRONT_DOOR, ServerProcess, app_folder, start_server

_IMAGES = 20
_AT_ONCE = 8
_START_SECONDS = 300


async def _asked(server: ServerProcess, request: bytes) -> float:
    """Seconds that a request takes on a connection of its own, as the viewers' clients make it."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request)
        await writer.drain()
        status = (await reader.readline()).split()[1]
        if status != b"200":
            sys.exit(f"the server answers {status.decode()}: {(await reader.read()).decode()}")
        await reader.read()
    finally:
        writer.close()
    return time.perf_counter() - start


async def _many(clients: int, work: Callable[[int], Awaitable[list[float]]]) -> list[float]:
    found = await asyncio.gather(*(work(number) for number in range(clients)))
    return [seconds for one in found for seconds in one]


def _info() -> bytes:
    return b"GET /info/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def _submit(image: str, number: int) -> bytes:
    """A label that differs from all others, with its names."""
    drawn = np.zeros((480, 512), np.uint8)
    drawn[number % 400 : number % 400 + 50, 100:200] = 1
    picture = BytesIO()
    Image.fromarray(drawn).save(picture, "PNG")
    parts = [
        b'Content-Disposition: form-data; name="params"\r\n\r\n'
        b'{"label_info": [{"name": "lungs", "idx": 1}]}',
        b'Content-Disposition: form-data; name="label"; filename="label.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + picture.getvalue(),
    ]
    body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
    head = (
        f"PUT /datastore/label?image={image}&tag=final HTTP/1.1\r\nHost: localhost\r\n"
        "Connection: close\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _told(name: str, seconds: list[float], took: float) -> None:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    print(
        f"{name:<20} {len(seconds):6d} requests {len(seconds) / took:7.1f} a second   "
        f"p50 {p50:7.1f} ms   p99 {p99:7.1f} ms   longest {max(seconds) * 1000:7.1f} ms",
        flush=True,
    )


async def _measure(server: ServerProcess, images: list[str], options: argparse.Namespace) -> None:
    for clients in (1, options.clients):
        until = time.perf_counter() + options.seconds

        async def ask(number: int, until: float = until) -> list[float]:
            found = []
            while time.perf_counter() < until:
                found.append(await _asked(server, _info()))
            return found

        start = time.perf_counter()
        seconds = await _many(clients, ask)
        _told(f"info, {clients} clients", seconds, time.perf_counter() - start)
    for clients in (1, _AT_ONCE):
        requests = [_submit(images[n % len(images)], n + clients) for n in range(options.submits)]

        async def send(
            number: int, requests: list[bytes] = requests, clients: int = clients
        ) -> list[float]:
            return [await _asked(server, one) for one in requests[number::clients]]

        start = time.perf_counter()
        seconds = await _many(clients, send)
        _told(f"submit, {clients} clients", seconds, time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--submits", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = DataFolder(Path(folder) / "home")
        home.prepare(app_folder())
        home.studies.mkdir()
        images = write_pictures(home.studies, _IMAGES)
        with (Path(folder) / "server.log").open("wb") as log:
            server = start_server(
                home.app,
                str(home.studies),
                port=0,
                conf={"background_scores": "false", "check_images": "false"},
                arguments=FRONT_DOOR,
                environment=home.environment(),
                output=log.fileno(),
            )
            try:
                server.wait_until_ready(_START_SECONDS)
                asyncio.run(_measure(server, images, options))
            finally:
                server.stop()


if __name__ == "__main__":
    main()
