"""Which web pages may use the server: its own, and those of the sites that are configured."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware

from esp_medsam_app.server.door.asgi_types import App, Receive, Scope, Send, header
from esp_medsam_app.server.door.refusal import RefusedError

_READING = {"GET", "HEAD", "OPTIONS"}


def with_cors(app: App, origins: Sequence[str]) -> App:
    """The application, readable for pages of these origins; of no other if there are none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_credentials=True,
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        allow_headers=["*"],
        expose_headers=["X-Request-ID", "Retry-After"],
    )


def normalised(origins: Sequence[object]) -> list[str]:
    """Origins as browsers write them: without the slash that a URL type puts at the end."""
    return [str(origin).rstrip("/") for origin in origins]


class Origins:
    """Refuses what a foreign page sends: browsers let it, even where it may not read the answer.

    Args:
        app: gets the rest, without the header `Origin`: MONAI Label would let every page read.
        origins: of pages that may.
        hosts: names of this server; any if empty. A foreign page could reach it under a name of
            its own.
    """

    def __init__(self, app: App, origins: Sequence[str], hosts: Sequence[str]) -> None:
        self._app = app
        self._origins = set(origins)
        self._hosts = list(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = header(scope, "host").lower()
        if self._hosts and not any(_fits(_name(host), known) for known in self._hosts):
            raise RefusedError(400, "This server does not answer under this host name.")
        origin = header(scope, "origin")
        if origin and scope["method"] not in _READING and not self._is_ours(origin, host):
            raise RefusedError(
                403,
                "Pages of other sites may not do this. MONAI_LABEL_CORS_ORIGINS names those that "
                "may.",
            )
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"origin"]
        await self._app({**scope, "headers": headers}, receive, send)

    def _is_ours(self, origin: str, host: str) -> bool:
        try:
            return origin in self._origins or urlsplit(origin).netloc.lower() == host
        except ValueError:
            return False


def _name(host: str) -> str:
    """Without the port."""
    return host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.split(":", 1)[0]


def _fits(name: str, known: str) -> bool:
    return name == known or (known.startswith("*.") and name.endswith(known[1:]))
