"""Every answer: numbered, counted, without the server's paths; errors as JSON with a reason."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

from esp_medsam_app.server.calls import Call, enter_call
from esp_medsam_app.server.door.asgi_types import App, Message, Receive, Scope, Send, answer
from esp_medsam_app.server.door.failures import failure, reason_of
from esp_medsam_app.server.door.metrics import Metrics
from esp_medsam_app.server.door.redaction import Redaction
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError

# Files of others, which tell nothing of this server and are too large to keep back.
_AS_THEY_ARE = ("/static/", "/ohif/", "/proxy/", "/openapi.json")
_TEXTS = ("application/json", "text/plain", "text/html")
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
_ROUTES = {
    "activelearning", "auth", "batch", "datastore", "docs", "healthz", "infer", "info", "logs",
    "metrics", "model", "ohif", "proxy", "readyz", "scoring", "session", "static", "train",
    "versions",
}  # fmt: skip
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "SAMEORIGIN",
}
# Whoever waits for an answer that has begun cannot be told otherwise.
_STATUS_OF_THE_GONE = 499

logger = logging.getLogger(__name__)


class Answers:
    """The outermost layer.

    Args:
        app: answers, or raises what `failure` makes an answer of.
        metrics: where requests are counted.
        redaction: of the server's folders; asked for when it is needed.
    """

    def __init__(self, app: App, metrics: Metrics, redaction: Callable[[], Redaction]) -> None:
        self._app = app
        self._metrics = metrics
        self._redaction = redaction

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        call = Call(client=str(client[0]) if client else "")
        enter_call(call)
        as_it_is = scope["path"].startswith(_AS_THEY_ARE)
        one = _Answer(send, call, None if as_it_is else self._redaction)
        started = time.monotonic()
        try:
            await self._app(scope, receive, one.send)
        except ClientLeftError:
            one.status = _STATUS_OF_THE_GONE
        except Exception as error:
            if one.has_begun:
                logger.error("Broke off, request %s", call.id, exc_info=error)
                raise
            await one.fail(failure(error, call.id))
        else:
            await one.finish()
        finally:
            self._count(scope, call, one.status, time.monotonic() - started)

    def _count(self, scope: Scope, call: Call, status: int, seconds: float) -> None:
        first = scope["path"].strip("/").split("/", 1)[0]
        route = first if first in _ROUTES else "root" if not first else "other"
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.requests.add(method=method, route=route, status=str(status))
        self._metrics.seconds.observe(seconds, route=route)
        logger.debug("%s %s %s: %d in %.3f s", call.id, method, scope["path"], status, seconds)


class _Answer:
    """One answer on its way: errors and texts are kept back until they are whole."""

    def __init__(self, send: Send, call: Call, redaction: Callable[[], Redaction] | None) -> None:
        self._send = send
        self._call = call
        self._redaction = redaction
        self._start: Message | None = None
        self._body: list[bytes] = []
        self.has_begun = False
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._with_ours(message.get("headers", []))}
            if self.status >= 400 or (self._redaction and _is_text(message)):
                self._start = message
                return
            self.has_begun = True
            await self._send(message)
        elif self._start is not None:
            self._body.append(message.get("body", b""))
            if self.status < 400 and not message.get("more_body", False):
                await self.finish()
        else:
            await self._send(message)

    async def finish(self) -> None:
        """Send what was kept back."""
        if self._start is None:
            return
        start, self._start = self._start, None
        content = b"".join(self._body)
        if self.status >= 400:
            kept = {
                name.decode(): value.decode("latin-1")
                for name, value in start["headers"]
                if name.lower() in (b"retry-after", b"www-authenticate", b"allow")
            }
            await self._tell(RefusedError(self.status, _reason(content, self.status), kept))
            return
        if self._redaction is not None:
            content = self._redaction().body(content)
        length = (b"content-length", str(len(content)).encode())
        headers = [h for h in start["headers"] if h[0].lower() != b"content-length"]
        self.has_begun = True
        await self._send({**start, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": content})

    async def fail(self, refused: RefusedError) -> None:
        """Answer with an error, whatever was kept back."""
        self._start = None
        await self._tell(refused)

    async def _tell(self, refused: RefusedError) -> None:
        self.status = refused.status
        reason = refused.reason
        if self._redaction is not None:
            reason = self._redaction().text(reason)
        if refused.status >= 500:
            logger.warning("Answered %d, request %s: %s", refused.status, self._call.id, reason)
        self.has_begun = True
        await answer(
            self._send,
            refused.status,
            {"detail": reason, "request_id": self._call.id},
            {**refused.headers, **_HEADERS, "x-request-id": self._call.id},
        )

    def _with_ours(self, headers: Any) -> list[tuple[bytes, bytes]]:
        there = {name.lower() for name, _ in headers}
        ours = {**_HEADERS, "x-request-id": self._call.id}
        if self._redaction is not None:
            # patients' images and names: no cache on the way keeps them
            ours["cache-control"] = "no-store"
        added = [(k.encode(), v.encode()) for k, v in ours.items() if k.encode() not in there]
        return [*headers, *added]


def _is_text(start: Message) -> bool:
    kinds = [
        value.decode("latin-1")
        for name, value in start["headers"]
        if name.lower() == b"content-type"
    ]
    return any(kind.startswith(_TEXTS) for kind in kinds)


def _reason(content: bytes, status: int) -> str:
    """What an inner application said of an error."""
    try:
        told = json.loads(content)
    except ValueError:
        told = None
    if isinstance(told, dict) and "detail" in told:
        return reason_of(told["detail"])
    if status >= 500:
        return "The server failed unexpectedly."
    text = content.decode("utf-8", errors="replace").strip()
    return text if 0 < len(text) < 300 and not text.startswith("<") else f"Refused ({status})."
