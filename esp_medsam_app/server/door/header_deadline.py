"""A connection that sends no whole request is closed: uvicorn itself waits for ever.

It has a deadline for connections that are silent between two requests, but none for headers that
come a letter at a time, or for a body that nobody reads any more. Only its protocol classes know,
and MONAI Label starts it, so that their methods are extended here, once and for all connections of
the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

_PROTOCOLS = (
    ("uvicorn.protocols.http.h11_impl", "H11Protocol"),
    ("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol"),
)
_SECONDS = "_esp_medsam_header_seconds"
_DEADLINE = "_esp_medsam_header_deadline"


def limit_headers(seconds: float) -> None:
    """Close connections from now on whose request is not whole in time.

    Args:
        seconds: from the connection's begin, or from the answer before, to the end of the headers.
    """
    for module, name in _PROTOCOLS:
        try:
            protocol = getattr(import_module(module), name)
        except ImportError:
            # httptools is not installed
            continue
        if not hasattr(protocol, _SECONDS):
            for method in ("connection_made", "data_received"):
                setattr(protocol, method, _watched(getattr(protocol, method)))
            protocol.connection_lost = _unwatched(protocol.connection_lost)
        setattr(protocol, _SECONDS, seconds)


def _watched(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def watched(self: Any, *arguments: Any) -> None:
        method(self, *arguments)
        if _is_answering(self):
            _disarm(self)
        elif getattr(self, _DEADLINE, None) is None and not self.transport.is_closing():
            deadline = self.loop.call_later(getattr(self, _SECONDS), _close, self)
            setattr(self, _DEADLINE, deadline)

    return watched


def _unwatched(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def unwatched(self: Any, *arguments: Any) -> None:
        _disarm(self)
        method(self, *arguments)

    return unwatched


def _is_answering(protocol: Any) -> bool:
    """Whether a request is being answered, which has its own deadlines."""
    return protocol.cycle is not None and not protocol.cycle.response_complete


def _disarm(protocol: Any) -> None:
    deadline: asyncio.TimerHandle | None = getattr(protocol, _DEADLINE, None)
    if deadline is not None:
        deadline.cancel()
        setattr(protocol, _DEADLINE, None)


def _close(protocol: Any) -> None:
    setattr(protocol, _DEADLINE, None)
    # a request may have begun from what had been received before
    if not _is_answering(protocol):
        protocol.transport.close()
