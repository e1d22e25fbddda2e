"""Reading gzip as it comes from other programs and copies, by ISA-L."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from isal import isal_zlib

_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31
# Compressed bytes in one go, and bytes in one go that nobody wants.
_CHUNK, _SKIPPED = 2**20, 2**22


class GzipStream(io.RawIOBase):
    """The content of a gzip file, member after member; bytes behind the last member do not count.

    Python's and ISA-L's own readers take such bytes, which archives and copies pad files with, for
    damage. A member's checksum is compared as soon as its last byte was read.

    Raises:
        EOFError: the file ends within a member.
        isal_zlib.error: the bytes are damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._begin()

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always; backwards means from the start."""
        return True

    def tell(self) -> int:
        """How many bytes of the content lie before the next one."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte of the content."""
        target = offset + (self._position if whence == io.SEEK_CUR else 0)
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the length is not known")
        if target < self._position:
            self._file.seek(0)
            self._begin()
        while self._position < target and self._decoded(min(target - self._position, _SKIPPED)):
            pass
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end of the content."""
        view, filled = memoryview(buffer).cast("B"), 0
        while filled < len(view):
            part = self._decoded(min(len(view) - filled, _CHUNK))
            if not part:
                break
            view[filled : filled + len(part)] = part
            filled += len(part)
        return filled

    def finish(self) -> None:
        """Compare the checksum of the member read last, if it has no byte left."""
        if not self._decoder.eof:
            self._decode(1)

    def _begin(self) -> None:
        self._decoder = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
        self._ahead = b""
        self._position = 0

    def _decoded(self, most: int) -> bytes:
        """Some bytes, as many as wanted at most; none at the end."""
        while True:
            if self._decoder.eof and not self._next_member():
                return b""
            part = self._decode(most)
            if part:
                self._position += len(part)
                return part

    def _decode(self, most: int) -> bytes:
        data = self._ahead or self._file.read(_CHUNK)
        part: bytes = self._decoder.decompress(data, most)
        self._ahead = self._decoder.unconsumed_tail
        if not (data or part or self._decoder.eof):
            raise EOFError("the file ends within its compressed data")
        return part

    def _next_member(self) -> bool:
        rest = self._decoder.unused_data
        # archives pad with zeros
        while len(rest := rest.lstrip(b"\0")) < len(_MAGIC):
            more = self._file.read(_CHUNK)
            if not more:
                return False
            rest += more
        if not rest.startswith(_MAGIC):
            return False
        self._decoder = isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
        self._ahead = rest
        return True


def begins_as_gzip(path: Path) -> bool:
    """Whether a file is compressed, whatever its name says."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
