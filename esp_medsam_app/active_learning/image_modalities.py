"""What images are of, kept on disk, so that each is looked at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from esp_medsam_app.active_learning.database import retain_images, transact

_TABLES = """
CREATE TABLE IF NOT EXISTS modalities (
    image TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, possible TEXT NOT NULL
);
"""


class ImageModality(NamedTuple):
    """What an image may be of.

    Attributes:
        fingerprint: of its file, see `fingerprint`; what was read of another file does not count.
        possible: names of modalities; one where it is known.
    """

    fingerprint: str
    possible: tuple[str, ...]


class ImageModalities:
    """The modalities that images may be of, in a file that threads and processes share.

    Args:
        path: of the file.

    All methods raise sqlite3.Error or OSError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, image: str, fingerprint: str, possible: Iterable[str]) -> None:
        """Note what an image may be of."""
        row = (image, fingerprint, json.dumps(list(possible)))
        transact(
            self.path,
            _TABLES,
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO modalities VALUES (?, ?, ?)", row
            ),
        )

    def known(self) -> Mapping[str, ImageModality]:
        """What was noted, by image."""
        rows = transact(
            self.path,
            _TABLES,
            lambda connection: connection.execute("SELECT * FROM modalities").fetchall(),
        )
        return {image: ImageModality(of, tuple(json.loads(text))) for image, of, text in rows}

    def retain(self, images: Iterable[str]) -> None:
        """Forget all images but these."""
        wanted = set(images)
        transact(
            self.path,
            _TABLES,
            lambda connection: retain_images(connection, ("modalities",), wanted),
        )
