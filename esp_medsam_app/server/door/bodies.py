"""Bodies of requests: read before a place is taken, and never more than may be sent.

A slow client thus holds no thread and no device, and what is too large never reaches the disk.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from typing import IO

from esp_medsam_app.server.disks import TEMPORARY, megabytes
from esp_medsam_app.server.door.asgi_types import App, Message, Receive, Scope, Send, header
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError

BODY = "esp_medsam.body"
_IN_MEMORY = 1 << 20
_CHUNK = 1 << 18
_MB, _KB = 1 << 20, 1 << 10
_UPLOADS = ("multipart/", "application/octet-stream", "application/dicom")


class Body:
    """A body that is here as a whole, in memory or in a file without a name."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._ended = False
        self.size = 0

    def add(self, chunk: bytes) -> None:
        """Append."""
        self._file.write(chunk)
        self.size += len(chunk)

    def rewind(self) -> None:
        """To be read from the start."""
        self._file.seek(0)
        self._ended = False

    def next_message(self) -> Message | None:
        """The next one of ASGI's messages; none after the last."""
        if self._ended:
            return None
        chunk = self._file.read(_CHUNK)
        self._ended = self._file.tell() >= self.size
        return {"type": "http.request", "body": chunk, "more_body": not self._ended}

    def read(self) -> bytes:
        """All of it."""
        self._file.seek(0)
        return self._file.read()

    def close(self) -> None:
        """Free the memory or the disk."""
        self._file.close()


class Bodies:
    """Reads the body of each request before it is passed on as `scope[BODY]`.

    Args:
        app: gets the request.
        max_upload_mb, max_json_kb, upload_seconds, min_free_mb: see `DoorSettings`.

    Raises:
        RefusedError: 413 too large, 408 too slow, 507 too little room on the disk.
        ClientLeftError: the client left in the middle of it.
    """

    def __init__(
        self,
        app: App,
        *,
        max_upload_mb: float,
        max_json_kb: float,
        upload_seconds: float,
        min_free_mb: float,
    ) -> None:
        self._app = app
        self._most_upload = int(max_upload_mb * _MB)
        self._most_json = int(max_json_kb * _KB)
        self._seconds = upload_seconds
        self._least_free = int(min_free_mb * _MB)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        most = self._most(scope)
        self._check_announced(scope, most)
        body = Body()
        try:
            await self._read(body, most, receive)
            body.rewind()
            await self._app({**scope, BODY: body}, receive, send)
        finally:
            body.close()

    def _most(self, scope: Scope) -> int:
        kind = header(scope, "content-type").lower()
        return self._most_upload if kind.startswith(_UPLOADS) else self._most_json

    def _check_announced(self, scope: Scope, most: int) -> None:
        told = header(scope, "content-length")
        if not told:
            return
        if not told.isascii() or not told.isdigit():
            raise RefusedError(400, "The header Content-Length is no number.")
        if int(told) > most:
            raise _too_large(most)
        free = shutil.disk_usage(tempfile.gettempdir()).free
        # it is written twice: here, and as the file that the endpoint works on
        if int(told) > _IN_MEMORY and 2 * int(told) > free - self._least_free:
            needed = megabytes(2 * int(told) + self._least_free)
            raise RefusedError(
                507,
                f"The disk of {TEMPORARY} has {megabytes(free)} free, and this upload needs "
                f"{needed}. Tell the server's admin.",
            )

    async def _read(self, body: Body, most: int, receive: Receive) -> None:
        kept: list[bytes] = []
        size = waiting = 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), self._seconds)
            except asyncio.TimeoutError:
                raise RefusedError(
                    408, f"Nothing came for {self._seconds:.0f} s in the middle of the upload."
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            chunk = message.get("body", b"")
            size += len(chunk)
            waiting += len(chunk)
            if size > most:
                raise _too_large(most)
            kept.append(chunk)
            if waiting > _IN_MEMORY:
                # it may go to the disk, for which the event loop is not to wait
                await asyncio.to_thread(body.add, b"".join(kept))
                kept, waiting = [], 0
            if not message.get("more_body", False):
                body.add(b"".join(kept))
                return


def _too_large(most: int) -> RefusedError:
    told = f"{most / _MB:.0f} MB" if most >= _MB else f"{most / _KB:.0f} kB"
    return RefusedError(413, f"The request is too large: {told} at most.")
