"""What stands for an image of the PACS in the datastore's folder: where it is and its grid."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esp_medsam_app.data.image import Grid

SUFFIX = ".dicomweb"
_ID = re.compile(r"([0-9]+(?:\.[0-9]+)*)(?:_([1-9][0-9]*))?")
_LONGEST_UID = 64


class Place(NamedTuple):
    """Which image of the PACS is meant.

    Attributes:
        series: its SeriesInstanceUID.
        number: which image of the series, from 1; none: the only one.
    """

    series: str
    number: int | None


def place_of(image_id: Any) -> Place | None:
    """What an image's id means: a series' UID, or for one of its images `<UID>_<number>`."""
    found = _ID.fullmatch(image_id) if isinstance(image_id, str) else None
    if found is None or len(found[1]) > _LONGEST_UID:
        return None
    return Place(found[1], int(found[2]) if found[2] else None)


def pointer(grid: Grid | None) -> bytes:
    """A pointer file's content; without a grid if the image could not be had yet."""
    if grid is None:
        return b"{}"
    return json.dumps(
        {
            "shape": grid.shape,
            "affine": grid.affine.tolist(),
            "has_patient_space": grid.has_patient_space,
        }
    ).encode()


def grid_of(file: Path) -> Grid | None:
    """The grid in a pointer file; none if it is not known."""
    try:
        stored = json.loads(file.read_bytes())
        return Grid(
            tuple(stored["shape"]), np.array(stored["affine"], float), stored["has_patient_space"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
