"""Headers that never end, answers that nobody reads: given up, and others are not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from esp_medsam_app.server.door.bodies import BODY, Body
from esp_medsam_app.server.door.header_deadline import limit_headers
from esp_medsam_app.server.door.refusal import ClientLeftError
from esp_medsam_app.server.door.threads import OffTheLoop

SECONDS = 0.3


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and takes longer to answer than headers may take."""
    if scope["type"] != "http":
        return
    headers = [(b"content-length", b"2")]
    if scope["path"] == "/refused":
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b"no"})
        return
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(2 * SECONDS)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a real uvicorn in a thread."""
    limit_headers(SECONDS)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(answering, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def answer(opened: socket.socket) -> bytes:
    """To the end of its body."""
    found = b""
    while not found.endswith((b"ok", b"no")) and (more := opened.recv(4096)):
        found += more
    return found


@contextmanager
def connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
        yield opened


def is_closed_by_the_server(opened: socket.socket, within: float = 5) -> bool:
    """Whether it is, while we go on sending a letter at a time."""
    opened.settimeout(0.05)
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            opened.sendall(b"x")
            if opened.recv(4096) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


@pytest.mark.parametrize(
    "begun",
    [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "],
)
def test_headers_that_never_end(port: int, begun: bytes) -> None:
    with connection(port) as opened:
        opened.sendall(begun)
        assert is_closed_by_the_server(opened)


def test_the_second_request_of_a_connection_too(port: int) -> None:
    with connection(port) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(opened).startswith(b"HTTP/1.1 200")
        opened.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert is_closed_by_the_server(opened)


def test_a_body_that_nobody_wants_any_more(port: int) -> None:
    with connection(port) as opened:
        opened.sendall(b"PUT /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert answer(opened).startswith(b"HTTP/1.1 413")
        assert is_closed_by_the_server(opened)


def test_whoever_sends_and_waits_is_not_cut_off(port: int) -> None:
    """Answers may take their time, and bodies have a deadline of their own."""
    with connection(port) as opened:
        for _ in range(2):
            opened.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            for letter in (b"b", b"o", b"d", b"y"):
                time.sleep(SECONDS / 2)
                opened.sendall(letter)
            assert answer(opened).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_reads_holds_no_thread() -> None:
    """The client has gone to sleep, and its connection is still there."""

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    async def never(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def answered() -> None:
        body = Body()
        body.rewind()
        threads = OffTheLoop(large, 1, seconds=0.05)
        for _ in range(2):
            with pytest.raises(ClientLeftError):
                await asyncio.wait_for(threads({BODY: body}, never, never), 10)
        threads.close()

    asyncio.run(answered())


def test_the_limit_is_set_once(port: int) -> None:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    before = H11Protocol.data_received
    limit_headers(SECONDS)
    assert H11Protocol.data_received is before
