"""A note in the app's folder of what its server served last, for backups.

Labels may lie anywhere: a backup that guesses where loses them. Free of MONAI Label and torch.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError

_FILE = Path("model", "served.json")


@dataclass(frozen=True)
class Served:
    """Where things were.

    Attributes:
        studies: as the server was started with: a folder, or the address of a PACS.
        labels: the folder of the datastore: images and labels, or with a PACS its labels.
        versions: the folder of what was trained.
    """

    studies: str
    labels: Path
    versions: Path

    @property
    def is_pacs(self) -> bool:
        """Whether the images are in a PACS."""
        return self.studies.startswith(("http://", "https://"))


def note_served(app: Path, served: Served) -> None:
    """Write the note.

    Raises:
        OSError: it cannot be written.
    """
    content = {
        "studies": served.studies,
        "labels": _written(app, served.labels),
        "versions": _written(app, served.versions),
    }
    with written_whole(app / _FILE) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_served(app: Path) -> Served | None:
    """The note; none where no server ran on this app yet.

    Raises:
        InputError: it is damaged.
    """
    file = app / _FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        labels, versions = ((app / found[name]).resolve() for name in ("labels", "versions"))
        return Served(str(found["studies"]), labels, versions)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"what the server served cannot be read ({error})",
            path=file,
            remedy="Name the studies with --studies, or start the server once",
        ) from error


def _written(app: Path, folder: Path) -> str:
    """Relative where both lie in one folder, which may be called otherwise outside a container."""
    folder, app = folder.resolve(), app.resolve()
    return os.path.relpath(folder, app) if folder.is_relative_to(app.parent) else str(folder)
