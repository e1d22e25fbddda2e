"""Cases lent to annotators, so that two of them do not work on the same one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from esp_medsam_app.active_learning.database import transact

# An annotator may take long over a volume, and a case that was passed over comes back after it.
SECONDS = 2 * 3600.0

_TABLES = """
CREATE TABLE IF NOT EXISTS leases (
    image TEXT PRIMARY KEY, client TEXT NOT NULL, since REAL NOT NULL
);
"""


class Leases:
    """Which case is with whom, kept in a file that threads and processes share.

    A lease ends when the case's label is submitted, or after a time.

    Args:
        path: of the file.
        seconds: until a lease ends by itself.
        clock: seconds since 1970, the same for all who share the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.seconds = seconds
        self.clock = clock

    def take(self, order: Sequence[str], client: str) -> str | None:
        """Lend a case to a client, who may hold others already.

        It is the first of the order that no one holds, the client neither: who asks again wants
        another case ("Next Sample" in Slicer). Where there is none, the client gets the case back
        that it has held for the longest, and where it holds none of these, the one that any other
        has held for the longest: nobody is sent home while there is work. In both cases the lease
        begins anew, so that asking on and on goes through all of them.

        Args:
            order: cases without a label, the best first.
            client: who asks; all who have no name are one.

        Returns:
            The case; none if the order is empty.

        Raises:
            sqlite3.Error, OSError: the file cannot be used.
        """

        def lend(connection: sqlite3.Connection) -> str | None:
            held = self._held(connection)
            free = next((image for image in order if image not in held), None)
            if free is None:
                ours = [image for image in order if held[image][0] == client]
                free = min(ours or order, key=lambda image: held[image][1], default=None)
            if free is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (free, client, self.clock())
                )
            return free

        return transact(self.path, _TABLES, lend)

    def release(self, image: str) -> None:
        """End the lease of a case, if there is one.

        Raises:
            sqlite3.Error, OSError: the file cannot be used.
        """
        transact(
            self.path,
            _TABLES,
            lambda connection: connection.execute("DELETE FROM leases WHERE image = ?", (image,)),
        )

    def held(self) -> dict[str, str]:
        """Who holds which case now: image to client.

        Raises:
            sqlite3.Error, OSError: the file cannot be used.
        """
        found = transact(self.path, _TABLES, self._held)
        return {image: client for image, (client, _) in found.items()}

    def _held(self, connection: sqlite3.Connection) -> dict[str, tuple[str, float]]:
        """Leases that have not ended, with their beginning; others are removed."""
        now = self.clock()
        # one from the future is of a clock that was wrong, and would never end
        connection.execute(
            "DELETE FROM leases WHERE since <= ? OR since > ?", (now - self.seconds, now + 1)
        )
        rows = connection.execute("SELECT image, client, since FROM leases ORDER BY rowid")
        return {image: (client, since) for image, client, since in rows}
