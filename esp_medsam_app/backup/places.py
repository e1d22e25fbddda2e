"""What belongs into a backup: which folders, and which of their files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from esp_medsam_app.errors import InputError
from esp_medsam_app.server.served import Served, read_served

STUDIES, DICOM, MODEL, LOGS = "studies", "dicom", "app/model", "app/logs"
VERSIONS = f"{MODEL}/versions"
# what can be computed or fetched again, by its place in the folder
_LEFT_OUT = {
    DICOM: re.compile(r"[^/]+/(series|converted)(/.*)?"),
    # where things were is no matter where they will be
    MODEL: re.compile(r"training/[^/]+/runs(/.*)?|served\.json"),
}


@dataclass(frozen=True)
class Place:
    """A folder to keep.

    Attributes:
        name: in the backup.
        folder: where it is.
    """

    name: str
    folder: Path

    def files(self) -> Iterator[tuple[str, Path]]:
        """Names in the backup, and files; hidden ones are locks, or still being written."""
        left_out = _LEFT_OUT.get(self.name)
        seen: set[Path] = set()
        for folder, subfolders, names in os.walk(self.folder, followlinks=True):
            real = Path(folder).resolve()
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            here = PurePosixPath(Path(folder).relative_to(self.folder).as_posix())
            kept = [
                name
                for name in sorted((*subfolders, *names))
                if _is_kept(name) and not (left_out and left_out.fullmatch(str(here / name)))
            ]
            subfolders[:] = [name for name in kept if name in subfolders]
            for name in kept:
                file = Path(folder, name)
                if file.is_file():
                    yield str(self.name / here / name), file


def places_of(
    app: Path, data: Path | None, studies: str | None, versions: Path | None
) -> tuple[str, list[Place]]:
    """The studies, and the folders that a backup of a server consists of.

    Args:
        app: the app's folder.
        data: the data folder that the app lies in, if it does.
        studies: folder or address; by default what the server served last.
        versions: of what was trained; likewise.

    Raises:
        InputError: it is not known where the labels are, or they are not there.
    """
    served = read_served(app)
    if studies is None and served is None and data is not None and (data / STUDIES).is_dir():
        studies = str(data / STUDIES)
    if studies is not None:
        where = _labels_of(studies, data, served)
        served = Served(studies, where, served.versions if served else app / "model" / "versions")
    if served is None:
        raise InputError(
            "no server has noted here where its studies are",
            path=app,
            remedy="Name the folder or the PACS's address with --studies",
        )
    if not served.labels.is_dir():
        raise InputError(
            "the folder of the labels is not there",
            path=served.labels,
            remedy="Name the studies with --studies",
        )
    # labels of PACS that were served before lie beside
    labels = Place(DICOM, served.labels.parent) if served.is_pacs else Place(STUDIES, served.labels)
    places = [labels, Place(MODEL, app / "model"), Place(LOGS, app / "logs")]
    trained = (versions or served.versions).resolve()
    if trained != (app / "model" / "versions").resolve():
        places.append(Place(VERSIONS, trained))
    return served.studies, [place for place in places if place.folder.is_dir()]


def _labels_of(studies: str, data: Path | None, served: Served | None) -> Path:
    if not studies.startswith(("http://", "https://")):
        return Path(studies).resolve()
    if served is not None and served.studies.rstrip("/") == studies.rstrip("/"):
        return served.labels
    from esp_medsam_app.server.pacs.datastore import labels_folder

    return labels_folder(studies, data / DICOM if data is not None else None)


def _is_kept(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(".lock") and name != "__pycache__"
