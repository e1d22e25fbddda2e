"""Whether the server lives, and whether it can take requests; answered on the event loop."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from esp_medsam_app.server.door.asgi_types import App, Receive, Scope, Send, answer
from esp_medsam_app.server.door.lanes import Lane
from esp_medsam_app.server.door.metrics import CONTENT_TYPE, Metrics
from esp_medsam_app.server.door.refusal import RefusedError

_MB = 1 << 20


class Health:
    """`/healthz`, `/readyz` and `/metrics`.

    Args:
        app: gets all other requests.
        lanes: that must have room, and move.
        metrics: to be shown.
        min_free_mb: of each disk that is written to.
        written: the folders that are written to.
    """

    def __init__(
        self,
        app: App,
        *,
        lanes: list[Lane],
        metrics: Metrics,
        min_free_mb: float,
        written: Callable[[], list[Path]],
    ) -> None:
        self._app = app
        self._lanes = lanes
        self._metrics = metrics
        self._least_free = min_free_mb * _MB
        self._written = written
        self.is_ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/")
        if path not in ("/healthz", "/readyz", "/metrics"):
            await self._app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            raise RefusedError(405, "This is only read.", {"allow": "GET, HEAD"})
        if path == "/healthz":
            await answer(send, 200, {"status": "alive"})
        elif path == "/readyz":
            found = self._missing()
            if found:
                raise RefusedError(503, "; ".join(found), {"retry-after": "5"})
            await answer(send, 200, {"status": "ready"})
        else:
            await answer(send, 200, self._metrics.text(), {"content-type": CONTENT_TYPE})

    def _missing(self) -> list[str]:
        missing = [] if self.is_ready else ["the server is starting or stopping"]
        missing += [f"the queue of {lane.name} is full" for lane in self._lanes if lane.is_full]
        missing += [
            f"all places of {lane.name} are taken, and nothing moves for {lane.patience:.0f} s"
            for lane in self._lanes
            if lane.is_stuck
        ]
        for folder in [Path(tempfile.gettempdir()), *self._written()]:
            try:
                if shutil.disk_usage(folder).free < self._least_free:
                    missing.append("a disk is full")
            except OSError:
                missing.append("a folder that is written to is not there")
        return list(dict.fromkeys(missing))
