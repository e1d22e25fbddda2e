"""What an ASGI application is."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: str) -> str:
    """A header of a request; empty if it was not sent."""
    wanted = name.lower().encode()
    return next((v.decode("latin-1") for k, v in scope["headers"] if k.lower() == wanted), "")


async def answer(
    send: Send,
    status: int,
    content: Mapping[str, Any] | str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a whole answer: JSON, or text of a type that the headers name."""
    text = content if isinstance(content, str) else json.dumps(content)
    body = text.encode()
    kind = "text/plain; charset=utf-8" if isinstance(content, str) else "application/json"
    told = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in told.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
