"""Reading images, label maps and archives where it can be ended: in processes of their own.

The functions are those of `data.reading`, for files that may come from outside. A file that takes
longer or more memory than its size allows is refused; the server goes on.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

from esp_medsam_app.data import archives, reading
from esp_medsam_app.data.admission import LEAST, Admission
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.server.readers import Readers

# Of a slow disk, or a decoder that works hard: JPEG 2000 comes at some megabytes a second.
_SECONDS = 30.0
_BYTES_A_SECOND = 1e6

_creating = threading.Lock()
_readers: Readers | None = None


def read_image(path: str | Path) -> MedicalImage:
    """As `data.reading.read_image`.

    Raises:
        InputError: as there; or it takes too long, or its decoder fails.
        BusyError: all readers are busy.
    """
    path = Path(path)
    if not _apart():
        return reading.read_image(path)
    limit = Admission.of_image(path).limit if path.exists() else 0
    return cast(MedicalImage, readers().read("read_image", path, memory=limit, seconds=_time(path)))


def read_label_map(
    path: str | Path, grid: Grid | None = None, *, kept: bool = False
) -> MedicalImage:
    """As `data.reading.read_label_map`.

    Raises:
        InputError: as there; or it takes too long, or its decoder fails.
        BusyError: all readers are busy.
    """
    path = Path(path)
    if not _apart():
        return reading.read_label_map(path, grid, kept=kept)
    shape = grid.shape if grid is not None else None
    limit = Admission.of_labels(path, shape, kept=kept).limit if path.exists() else 0
    found = readers().read(
        "read_label_map", path, grid, kept=kept, memory=limit, seconds=_time(path)
    )
    return cast(MedicalImage, found)


def read_grid(path: str | Path) -> Grid:
    """As `data.reading.read_grid`.

    Raises:
        InputError: as there; or it takes too long, or its decoder fails.
        BusyError: all readers are busy.
    """
    path = Path(path)
    if not _apart():
        return reading.read_grid(path)
    limit = Admission.of_image(path).limit if path.exists() else 0
    return cast(Grid, readers().read("read_grid", path, memory=limit, seconds=_time(path)))


def unpack(archive: Path, folder: Path, ask: Callable[[int], object] | None = None) -> int:
    """As `data.archives.unpack`.

    Raises:
        InputError: as there; or it takes too long.
        FullDiskError: there is no room.
        BusyError: all readers are busy.
    """
    if not _apart():
        return archives.unpack(archive, folder, ask=ask)
    count = readers().read("unpack", archive, folder, ask=ask, memory=LEAST, seconds=_time(archive))
    return cast(int, count)


def readers() -> Readers:
    """The readers of this process; started when they are needed first."""
    global _readers
    with _creating:
        if _readers is None:
            _readers = Readers()
            atexit.register(_readers.close)
        return _readers


def _apart() -> bool:
    # elsewhere there are no limits for processes
    return os.name == "posix"


def _time(path: Path) -> float:
    files = [path] if path.is_file() else path.iterdir() if path.is_dir() else []
    size = sum(file.stat().st_size for file in files if file.is_file())
    return _SECONDS + size / _BYTES_A_SECOND


def _forget() -> None:
    """In a process that was forked, the readers are the parent's."""
    global _readers, _creating
    _readers, _creating = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
