"""Which model was run last on each image, in a file that threads and processes share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esp_medsam_app.active_learning.database import transact

_TABLES = "CREATE TABLE IF NOT EXISTS used (image TEXT PRIMARY KEY, model TEXT NOT NULL);"


class UsedModels:
    """The last model by image.

    Args:
        path: of the file.

    All methods raise sqlite3.Error or OSError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, image: str, model: str) -> None:
        """Note that a model was run on an image."""
        transact(
            self.path,
            _TABLES,
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO used VALUES (?, ?)", (image, model)
            ),
        )

    def known(self) -> Mapping[str, str]:
        """The models by image."""
        return dict(
            transact(
                self.path,
                _TABLES,
                lambda connection: connection.execute("SELECT image, model FROM used").fetchall(),
            )
        )
