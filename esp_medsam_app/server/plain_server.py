"""Plain `monailabel start_server`, without the front door: no request holds the others up.

MONAI Label's endpoints are coroutines that block, on the very event loop that answers everybody:
while a series is downloaded, or a PACS is frozen, no client would get an answer. Its router gets
one route more, before all others, which has those answer in threads, as many at a time as behind
the front door. The viewers' way to the PACS is the front door's too: MONAI Label's own waits for
ever, forgets what was searched for, and leads to all of the PACS.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, HTTPException
from starlette.routing import BaseRoute, Match, NoMatchFound

from esp_medsam_app.errors import FullDiskError
from esp_medsam_app.server.disks import Disks
from esp_medsam_app.server.door.asgi_types import Receive, Scope, Send
from esp_medsam_app.server.door.bodies import Bodies
from esp_medsam_app.server.door.dicom_proxy import PREFIX, DicomProxy
from esp_medsam_app.server.door.header_deadline import limit_headers
from esp_medsam_app.server.door.identity import Gate
from esp_medsam_app.server.door.lanes import Lanes, TwoLanes
from esp_medsam_app.server.door.metrics import Metrics
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError
from esp_medsam_app.server.door.settings import DoorSettings
from esp_medsam_app.server.door.threads import OffTheLoop, is_off_the_loop
from esp_medsam_app.server.http_errors import as_http_error


def unblock(endpoints: FastAPI) -> None:
    """Have MONAI Label's endpoints answer in threads; to be called on the server's event loop.

    Without a loop there is no server, and nothing to do. Behind the front door requests come in
    threads already and pass by.

    Raises:
        InputError: an option of the server that cannot be used.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    settings = DoorSettings.read()
    limit_headers(settings.header_seconds)
    if not any(isinstance(route, Unblocked) for route in endpoints.router.routes):
        endpoints.router.routes.insert(0, Unblocked(endpoints, settings))


class Unblocked(BaseRoute):
    """Every request that is still on the event loop.

    Args:
        endpoints: MONAI Label's application, whose other routes answer.
        settings: of these, sizes and numbers of requests count.
    """

    def __init__(self, endpoints: FastAPI, settings: DoorSettings) -> None:
        lanes = TwoLanes(settings)
        threads = OffTheLoop(endpoints.router, lanes.places + 64, settings.upload_seconds)
        disks = Disks(settings.min_free_mb)
        self._bodies = Bodies(
            Lanes(threads, lanes.of, Metrics()),
            disks,
            max_upload_mb=settings.max_upload_mb,
            max_json_kb=settings.max_json_kb,
            upload_seconds=settings.upload_seconds,
        )
        self._proxy = DicomProxy(disks, settings.max_upload_mb, settings.upload_seconds)
        # before a body is read; MONAI Label's routes look again
        self._gate = Gate(
            self._pass_on,
            issuer=settings.keycloak_issuer,
            audience=settings.keycloak_audience,
        )

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """All of HTTP, once."""
        if scope["type"] != "http" or is_off_the_loop(scope):
            return Match.NONE, {}
        return Match.FULL, {}

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        """None."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by a thread, or pass on to the PACS."""
        path = str(scope["path"]).removeprefix(str(scope.get("root_path") or ""))
        try:
            await self._gate({**scope, "path": path}, receive, send)
        except RefusedError as error:
            raise HTTPException(error.status, error.reason, error.headers) from error
        except FullDiskError as error:
            raise as_http_error(error) from error
        except ClientLeftError:
            return

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(PREFIX):
            await self._proxy(scope, receive, send)
        else:
            await self._bodies(scope, receive, send)
