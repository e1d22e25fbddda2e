"""SHA-256s of files that clients compare with what they have, each computed once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from esp_medsam_app.weights.integrity import sha256_of


def known_digest(file: Path) -> str:
    """The SHA-256 of a file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    status = file.stat()
    return _digest(str(file), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(path: str, inode: int, size: int, changed: int) -> str:
    del inode, size, changed
    return sha256_of(Path(path))
