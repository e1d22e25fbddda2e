"""Whether the server lives, and whether it can take requests; answered on the event loop."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from esp_medsam_app.server.disks import TEMPORARY, full_disks
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
        written: the folders that are written to, by what they are for.
    """

    def __init__(
        self,
        app: App,
        *,
        lanes: list[Lane],
        metrics: Metrics,
        min_free_mb: float,
        written: Callable[[], Mapping[str, Path]],
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
        folders = {TEMPORARY: Path(tempfile.gettempdir()), **self._written()}
        return missing + full_disks(folders, self._least_free)
