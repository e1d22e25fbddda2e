"""Requests to an ASGI application in this process, also such as no HTTP library would send."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes


@dataclass(frozen=True)
class Raw:
    """A request as bytes.

    Attributes:
        method: HTTP's.
        path: with its escapes.
        query: likewise.
        headers: names and values.
        body: of it.
    """

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


async def call(app: Any, request: Raw) -> Answered:
    """Send a request as uvicorn would hand it over; everything that came back.

    Raises what the application raises.
    """
    messages: list[dict[str, Any]] = []
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    headers = [(b"host", b"server"), (b"content-length", str(len(request.body)).encode())]
    headers += [(n.encode("latin-1"), v.encode("latin-1", "replace")) for n, v in request.headers]
    raw = request.path.encode("utf-8", "surrogatepass")
    await app(
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": unquote_to_bytes(raw).decode("utf-8", "replace"),
            "raw_path": raw,
            "query_string": request.query,
            "root_path": "",
            "headers": headers,
            "client": ("192.0.2.7", 4711),
            "server": ("server", 80),
        },
        receive,
        send,
    )
    start = messages[0]
    return Answered(
        start["status"],
        {k.decode().lower(): v.decode("latin-1") for k, v in start["headers"]},
        b"".join(message.get("body", b"") for message in messages[1:]),
    )
