"""The server's temporary files, which are gone when it is gone."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

_NAME = "esp_medsam_server_"
_LOCK = ".in_use"

logger = logging.getLogger(__name__)


class TemporaryFolder:
    """A folder of this process for all temporary files, those of its children too.

    Folders of servers that were killed are removed: a lock tells that nobody lives in them.

    Args:
        parent: where it is made; the system's by default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        self.path: Path | None = None
        self._lock: FileLock | None = None
        self._before: tuple[str | None, str | None] = (None, None)

    def open(self) -> Path:
        """Make it, and remove what others left."""
        self._sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_NAME, dir=self._parent))
        self._lock = FileLock(self.path / _LOCK)
        self._lock.acquire()
        self._before = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.path)
        return self.path

    def close(self) -> None:
        """Remove it with all that is in it."""
        if self.path is None or self._lock is None:
            return
        tempfile.tempdir, variable = self._before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)
        self.path = None

    def _sweep(self) -> None:
        for folder in self._parent.glob(f"{_NAME}*"):
            lock = FileLock(folder / _LOCK, timeout=0)
            try:
                # without a lock: another server is just making it
                if folder.stat().st_uid != os.getuid() or not (folder / _LOCK).exists():
                    continue
                with lock:
                    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                    shutil.rmtree(folder, ignore_errors=True)
                logger.info("Removed %d bytes that a server left in %s", size, folder)
            except (OSError, Timeout):
                continue
