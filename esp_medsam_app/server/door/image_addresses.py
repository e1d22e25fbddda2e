"""Addresses of single images, for viewers whose downloads carry no log-in.

3D Slicer asks for the next image with its log-in. Then another part of Slicer downloads the image,
from the address that the module makes of the image's id, and sends no header along. So the id that
Slicer gets carries a signature: with it, this image alone can be read for some minutes without a
log-in. Slicer goes on using that id for everything it does with the image. From requests with a
log-in the signature is taken off, for however long the image is worked on.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from esp_medsam_app.server.calls import Call
from esp_medsam_app.server.door.asgi_types import App, Receive, Scope, Send, header

# in the scope of a request: these addresses, and whether the request may read its image by one
ADDRESSES, BY_ADDRESS = "esp_medsam.addresses", "esp_medsam.by_address"
# until the download has begun; the image is ready when the id is given
SECONDS = 300
_SIGNED = re.compile(r"(.+)~([0-9a-f]{8})~([A-Za-z0-9_-]{22})", re.DOTALL)
# query parameters that are ids of images
_IDS = ("image", "label", "id")
_IMAGE = "/datastore/image"


class ImageAddresses:
    """Signs ids of images, and resolves them in requests.

    The key is of this process: after a restart, addresses that were given before read nothing
    without a log-in, and are still understood with one.

    Args:
        app: gets the requests, with plain ids.
        seconds: for which an address can be read from.
        clock: seconds since 1970.
    """

    def __init__(
        self, app: App, seconds: float = SECONDS, clock: Callable[[], float] = time.time
    ) -> None:
        self._app = app
        self._seconds = seconds
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._given: dict[tuple[str, str], tuple[str, str, float]] = {}
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query, by_address = scope.get("query_string", b""), False
        if query.isascii() and (b"~" in query or b"%7E" in query.upper()):
            pairs = parse_qsl(query.decode(), keep_blank_values=True, errors="surrogateescape")
            reads = scope["method"] in ("GET", "HEAD") and scope["path"] == _IMAGE
            # of several ids, the last one would be read
            alone = len(pairs) == 1 and pairs[0][0] == "image"
            by_address = reads and alone and self.is_valid(pairs[0][1])
            query = _plain(query, pairs)
        known = {ADDRESSES: self, BY_ADDRESS: by_address, "query_string": query}
        await self._app({**scope, **known}, receive, send)

    def signed(self, image: str) -> str:
        """The id with a signature, from now on for some minutes."""
        until = f"{int(self._clock() + self._seconds):08x}"
        return f"{image}~{until}~{self._signature(image, until)}"

    def is_valid(self, signed: str) -> bool:
        """Whether this process signed an id, a short while ago."""
        found = _SIGNED.fullmatch(signed)
        if found is None:
            return False
        image, until, signature = found.groups()
        right = hmac.compare_digest(signature, self._signature(image, until))
        return right and int(until, 16) >= self._clock()

    def give(self, call: Call, image: str) -> str:
        """Sign an id for the sender of a request, and remember that it was the last one."""
        signed, now = self.signed(image), self._clock()
        with self._lock:
            self._given = {who: one for who, one in self._given.items() if one[2] >= now}
            self._given[call.user, call.client] = (signed, image, now + self._seconds)
        return signed

    def with_given(self, call: Call | None, objects: Mapping[str, Any]) -> dict[str, Any]:
        """Images by their ids, and the one that the sender got last by its signed id too."""
        found = dict(objects)
        with self._lock:
            given = self._given.get((call.user, call.client)) if call is not None else None
        if given is not None and given[2] >= self._clock() and given[1] in found:
            found[given[0]] = found[given[1]]
        return found

    def _signature(self, image: str, until: str) -> str:
        told = f"{until}\0{image}".encode("utf-8", "surrogateescape")
        made = hmac.new(self._key, told, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(made)[:22].decode()


def wants_address(scope: Scope, call: Call | None) -> bool:
    """Whether a request comes from MONAI Label's own client, as 3D Slicer has it, with a log-in.

    That client alone names no program in its headers; browsers and libraries do.
    """
    logged_in = call is not None and call.authenticated
    return logged_in and not header(scope, "user-agent") and ADDRESSES in scope


def _plain(query: bytes, pairs: list[tuple[str, str]]) -> bytes:
    """A query with the ids of images that stand in it signed."""
    found = [_SIGNED.fullmatch(value) if name in _IDS else None for name, value in pairs]
    if not any(found):
        return query
    plain = [
        (name, match[1] if match is not None else value)
        for (name, value), match in zip(pairs, found, strict=True)
    ]
    return urlencode(plain, errors="surrogateescape").encode()
