"""Bodies of requests: read before a place is taken, and never more than may be sent.

A slow client thus holds no thread and no device, and what is too large never reaches the disk.
Whoever may not send it is refused before, see `identity`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO

from esp_medsam_app.server.disks import TEMPORARY, Disks, Room
from esp_medsam_app.server.door.access import Access, Size, access_of
from esp_medsam_app.server.door.asgi_types import App, Message, Receive, Scope, Send, header
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError

BODY = "esp_medsam.body"
_IN_MEMORY = 1 << 20
_CHUNK = 1 << 18
_MB, _KB = 1 << 20, 1 << 10
_UPLOADS = ("multipart/", "application/octet-stream", "application/dicom")
_LOG_IN = 16 * _KB
# bytes a second, on average and after a first grace: a client that is slower holds a place for ever
_SLOWEST = 16 * _KB
# an upload is written three times: as the body, as a part of it, and as the file to work on
_COPIES = 3


class Body:
    """A body that is here as a whole, in memory or in a file without a name."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._ended = False
        self.size = 0

    @property
    def size_on_disk(self) -> int:
        """How much of it is in a file."""
        return self.size if self.size > _IN_MEMORY else 0

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
        disks: have to have room for what is uploaded.
        max_upload_mb, max_json_kb, upload_seconds: see `DoorSettings`.

    Raises:
        RefusedError: 413 too large, 408 too slow.
        FullDiskError: a disk has too little room.
        ClientLeftError: the client left in the middle of it.
    """

    def __init__(
        self,
        app: App,
        disks: Disks,
        *,
        max_upload_mb: float,
        max_json_kb: float,
        upload_seconds: float,
    ) -> None:
        self._app = app
        self._disks = disks
        self._most_upload = int(max_upload_mb * _MB)
        self._most_json = int(max_json_kb * _KB)
        self._seconds = upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = access_of(scope["method"], scope["path"])
        most = self._most(scope, access)
        told = announced(scope, most)
        body = Body()
        # the room is the request's own until it is answered
        with self._disks.room() as room:
            upload = Upload(body, room, access)
            try:
                if upload.needs_room(told):
                    await asyncio.to_thread(upload.expect, told)
                await self._read(upload, most, receive)
                body.rewind()
                await self._app({**scope, BODY: body}, receive, send)
            finally:
                body.close()

    def _most(self, scope: Scope, access: Access) -> int:
        if access.size is Size.LOG_IN:
            return min(_LOG_IN, self._most_json)
        kind = header(scope, "content-type").lower()
        is_upload = access.size is Size.UPLOAD and kind.startswith(_UPLOADS)
        return self._most_upload if is_upload else self._most_json

    async def _read(self, upload: Upload, most: int, receive: Receive) -> None:
        kept: list[bytes] = []
        waiting = 0
        async for chunk in chunks(receive, most, self._seconds):
            kept.append(chunk)
            waiting += len(chunk)
            if waiting > _IN_MEMORY:
                # it may go to the disk, for which the event loop is not to wait
                await asyncio.to_thread(upload.add, b"".join(kept))
                kept, waiting = [], 0
        rest = b"".join(kept)
        if upload.needs_room(upload.size + len(rest)):
            await asyncio.to_thread(upload.add, rest)
        else:
            upload.add(rest)


async def chunks(receive: Receive, most: int, seconds: float) -> AsyncIterator[bytes]:
    """The parts of a body as they come.

    Args:
        receive: of the request.
        most: bytes of them all.
        seconds: how long a client may be silent.

    Raises:
        RefusedError: 413 too large, 408 too slow.
        ClientLeftError: the client left in the middle of it.
    """
    size = 0
    clock = asyncio.get_running_loop().time
    latest = clock() + seconds
    while True:
        left = min(seconds, latest + size / _SLOWEST - clock())
        try:
            message = await asyncio.wait_for(receive(), max(0.0, left))
        except asyncio.TimeoutError:
            raise RefusedError(
                408,
                f"The upload is too slow: nothing came for {seconds:.0f} s, or less than "
                f"{_SLOWEST // _KB} kB a second.",
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise too_large(most)
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return


class Upload:
    """A body on its way, with room on the disks for all that becomes of it.

    Args:
        body: that grows.
        room: of the request.
        access: tells where the body is kept.
        copies: how often it is written as a temporary file.
    """

    def __init__(self, body: Body, room: Room, access: Access, copies: int = _COPIES) -> None:
        self._body = body
        self._room = room
        self._access = access
        self._copies = copies
        self._expected = 0

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return self._body.size

    def needs_room(self, size: int) -> bool:
        """Whether a body of this size goes to a disk: it stays in memory, or is kept for good."""
        is_upload = self._access.size is Size.UPLOAD and size > 0
        return is_upload and (self._access.kept is not None or size > _IN_MEMORY)

    def expect(self, size: int) -> None:
        """Have room for a body of this size.

        Raises:
            FullDiskError: there is too little.
        """
        kept, more = self._access.kept, size - self._expected
        if more <= 0 or not self.needs_room(size):
            return
        self._expected = size
        self._room.promise(TEMPORARY, self._copies * more)
        if kept:
            self._room.promise(kept, more)

    def add(self, chunk: bytes) -> None:
        """Append, if there is room."""
        self.expect(self._body.size + len(chunk))
        before = self._body.size_on_disk
        self._body.add(chunk)
        self._room.written(TEMPORARY, self._body.size_on_disk - before)


def announced(scope: Scope, most: int) -> int:
    """The size of a body as its header tells it; 0 if it does not.

    Raises:
        RefusedError: 400 no number, 413 too large.
    """
    told = header(scope, "content-length")
    if not told:
        return 0
    # Python reads no numbers of thousands of digits
    if not told.isascii() or not told.isdigit() or len(told) > 18:
        raise RefusedError(400, "The header Content-Length is no number.")
    if int(told) > most:
        raise too_large(most)
    return int(told)


def too_large(most: int) -> RefusedError:
    """The answer to a body of more than `most` bytes."""
    told = f"{most / _MB:.0f} MB" if most >= _MB else f"{most / _KB:.0f} kB"
    return RefusedError(413, f"The request is too large: {told} at most.")
