"""Sessions: images that a viewer uploads for a while, without adding them to the datastore."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from esp_medsam_app.errors import FullDiskError, InputError
from esp_medsam_app.server.archives import only_folder, unpack
from esp_medsam_app.server.disks import SESSIONS, TEMPORARY, current_room
from esp_medsam_app.server.http_errors import as_http_error

_SESSION_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

logger = logging.getLogger(__name__)


class CheckedSessions(Sessions):
    """Sessions whose id is never taken for a path, and whose remains do not stop the start-up."""

    def get_session(
        self, session_id: str, update_ts: bool = True, fetch_cache: bool = True
    ) -> SessionInfo | None:
        """The session of an id; none if it is unknown, has expired or is no session's id."""
        if not _SESSION_ID.fullmatch(session_id):
            return None
        try:
            return super().get_session(session_id, update_ts, fetch_cache)
        except (OSError, ValueError):
            logger.warning("Session %s cannot be read", session_id, exc_info=True)
            return None

    def add_session(
        self,
        data_file: str,
        expiry: int = 0,
        uncompress: bool = False,
        session_id: str | None = None,
    ) -> tuple[str, SessionInfo]:
        """Keep an image for a while, or what an archive of it holds.

        Raises:
            HTTPException: 422 an archive that cannot be unpacked, or not safely; 507 there is no
                room for what it holds.
        """
        if not uncompress or Path(data_file).is_dir():
            return super().add_session(data_file, expiry, False, session_id)
        folder = Path(tempfile.mkdtemp(prefix="esp_medsam_"))
        try:
            room = current_room()
            guard = room.guard(TEMPORARY, SESSIONS) if room else _no_limit
            unpack(Path(data_file), folder, ask=guard)
            return super().add_session(str(only_folder(folder)), expiry, False, session_id)
        except (InputError, FullDiskError) as error:
            raise as_http_error(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove_expired(self) -> int:
        """Remove what is older than it may be, and what is left of broken sessions; how many."""
        store = Path(self.store_path)
        if not store.is_dir():
            return 0
        count = 0
        for folder in store.iterdir():
            if not folder.is_dir() or not _SESSION_ID.fullmatch(folder.name):
                continue
            session = self.get_session(folder.name, update_ts=False, fetch_cache=False)
            if session is None:
                # Another server's session, just being made, has no description yet.
                expired = folder.stat().st_mtime + self.expiry < time.time()
            else:
                expired = 0 < session.expiry < time.time() - session.last_access_ts
            if expired:
                self.pop(folder.name, None)
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        return count


def _no_limit(size: int) -> None:
    """Outside of requests."""
