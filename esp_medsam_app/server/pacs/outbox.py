"""Labels on their way into the PACS: kept here until it has them, however long it is away."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from esp_medsam_app.errors import EspMedSamError, UnreachableError

# Seconds between two tries while the PACS is away.
INTERVAL = 10.0

logger = logging.getLogger(__name__)


class Outbox:
    """A folder with a file for each image whose label is to be sent.

    The files are written in the transaction that keeps the label, so that a crash loses neither
    without the other. Of all threads and processes, one sends at a time.

    Args:
        folder: of the files.
        send: puts the label of an image into the PACS; raises UnreachableError if it is to be
            tried again, and another EspMedSamError if that would not help.
        refused: is told why a label will not be in the PACS.
    """

    def __init__(
        self, folder: Path, send: Callable[[str], None], refused: Callable[[str, str], None]
    ) -> None:
        self.folder = folder
        self._send = send
        self._refused = refused
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False

    def file(self, image_id: str) -> Path:
        """The file that stands for an image's label."""
        return self.folder / f"{image_id}.json"

    def waiting(self) -> list[str]:
        """Images whose labels are not in the PACS yet."""
        if not self.folder.is_dir():
            return []
        files = sorted(self.folder.glob("[!.]*.json"), key=lambda file: file.stat().st_mtime)
        return [json.loads(file.read_bytes())["image"] for file in files]

    @staticmethod
    def content(image_id: str) -> bytes:
        """Of an image's file."""
        return json.dumps({"image": image_id}).encode()

    def start(self) -> None:
        """Send from now on, in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pacs-outbox", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Send no more, after the label that is on its way; what waits is kept."""
        self._ended = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """There is something to send."""
        self._wanted.set()

    def send_all(self) -> int:
        """Send what there is; how many labels arrived."""
        self.folder.mkdir(parents=True, exist_ok=True)
        count = 0
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                for image_id in self.waiting():
                    count += self._sent(image_id)
        except Timeout:
            logger.debug("Another process is sending")
        except UnreachableError as error:
            logger.warning("%d labels wait for the PACS: %s", len(self.waiting()), error)
        return count

    def _sent(self, image_id: str) -> bool:
        file = self.file(image_id)
        stamp = file.stat().st_mtime_ns
        try:
            self._send(image_id)
        except UnreachableError:
            raise
        except EspMedSamError as error:
            logger.warning("The label of %s is kept here only: %s", image_id, error)
            self._refused(image_id, str(error.problem))
            file.unlink(missing_ok=True)
            return False
        # a label that was submitted meanwhile has renewed the file
        if file.exists() and file.stat().st_mtime_ns == stamp:
            file.unlink(missing_ok=True)
        return True

    def _run(self) -> None:
        while not self._ended:
            self._wanted.clear()
            try:
                self.send_all()
            except Exception:
                # the thread would end, and no label would be sent any more
                logger.exception("Labels could not be sent to the PACS")
            if not self._ended:
                self._wanted.wait(INTERVAL)
