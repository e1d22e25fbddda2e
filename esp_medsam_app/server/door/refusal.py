"""Requests that are refused before anybody worked on them."""

from __future__ import annotations

from collections.abc import Mapping


class RefusedError(Exception):
    """The answer to a request that goes no further.

    Args:
        status: HTTP's.
        reason: for the person at the viewer: what is wrong, and what to do.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


class ClientLeftError(Exception):
    """The client has gone: there is nobody to answer."""
