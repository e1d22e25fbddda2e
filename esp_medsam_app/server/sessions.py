"""Sessions: images that a viewer uploads for a while, without adding them to the datastore."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from pathlib import Path

from monailabel.utils.sessions import SessionInfo, Sessions

from esp_medsam_app.data.archives import only_folder
from esp_medsam_app.data.attached import check_attached
from esp_medsam_app.errors import EspMedSamError
from esp_medsam_app.server.disks import SESSIONS, TEMPORARY, current_room
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.server.reading import unpack
from esp_medsam_app.server.sources import ImageSource

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
            HTTPException: 422 an archive that cannot be unpacked, or not safely; a header whose
                voxels would lie in another file; 507 there is no room for what it holds.
        """
        source = Path(data_file)
        folder = Path(tempfile.mkdtemp(prefix="esp_medsam_"))
        try:
            if uncompress and not source.is_dir():
                room = current_room()
                unpack(source, folder, ask=room.guard(TEMPORARY, SESSIONS) if room else None)
                source = only_folder(folder)
            for file in source.rglob("*") if source.is_dir() else [source]:
                if file.is_file():
                    check_attached(file)
            return super().add_session(str(source), expiry, False, session_id)
        except EspMedSamError as error:
            raise as_http_error(error, ImageSource(source, "", "the session's image")) from error
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
