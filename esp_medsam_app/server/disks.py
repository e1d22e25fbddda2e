"""Room on the disks that the server writes to: promised before it is used, kept free of uploads.

Requests that come at the same time would each find the same room. So a request asks for what it is
going to write, and others are told that it is gone; when it is written, the disk itself says so.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from monailabel.config import settings

from esp_medsam_app.errors import FullDiskError

TEMPORARY, STUDIES, SESSIONS, APP = "temporary files", "studies", "sessions", "app"
_MB = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}


def written_folders() -> dict[str, Path]:
    """The folders that the server writes to, by the names that people are told."""
    studies = str(settings.MONAI_LABEL_STUDIES)
    if studies.startswith(("http://", "https://")):
        studies = str(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH)
    home = Path.home() / ".cache" / "monailabel"
    found = {
        TEMPORARY: tempfile.gettempdir(),
        STUDIES: studies or home,
        SESSIONS: str(settings.MONAI_LABEL_SESSION_PATH) or home / "sessions",
        APP: str(settings.MONAI_LABEL_APP_DIR),
    }
    return {name: Path(folder) for name, folder in found.items() if str(folder)}


class Disks:
    """What is promised on each disk.

    Args:
        min_free_mb: of each disk that no promise takes.
        folders: by name; those of the server by default.
    """

    def __init__(
        self,
        min_free_mb: float,
        folders: Callable[[], Mapping[str, Path]] = written_folders,
    ) -> None:
        self._least_free = int(min_free_mb * _MB)
        self._folders = folders
        self._promised: defaultdict[int, int] = defaultdict(int)
        self._lock = threading.Lock()

    @contextmanager
    def room(self) -> Iterator[Room]:
        """What one request may write, for the time of a block; see `current_room`."""
        room = Room(self)
        token = _CURRENT.set(room)
        try:
            yield room
        finally:
            _CURRENT.reset(token)
            room.close()

    def _promise(self, name: str, size: int) -> int:
        """Promise room on the disk of a folder; the disk's number."""
        folder = _there(self._folders()[name])
        disk = disk_of(folder)
        with self._lock:
            free = shutil.disk_usage(folder).free
            if free - self._promised[disk] - size < self._least_free:
                raise too_full(name, free)
            self._promised[disk] += size
        return disk

    def _guard(self, now: str, later: Sequence[str]) -> Guard:
        folders = self._folders()
        with self._lock:
            least = self._least_free + max(self._promised.values(), default=0)
        return Guard(least, (now, folders[now]), {name: folders[name] for name in later})

    def _written(self, disk: int, size: int) -> None:
        with self._lock:
            self._promised[disk] -= size


class Room:
    """What one request was promised; to be used by one thread at a time.

    Args:
        disks: that it is on.
    """

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._left: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    def promise(self, name: str, size: int) -> None:
        """Have room for `size` bytes in a folder.

        Raises:
            FullDiskError: there is too little.
        """
        self._left[name].append((self._disks._promise(name, size), size))

    def written(self, name: str, size: int) -> None:
        """`size` bytes of what was promised are on the disk now, which tells so itself."""
        left = self._left[name]
        while size > 0 and left:
            disk, promised = left.pop()
            done = min(size, promised)
            self._disks._written(disk, done)
            size -= done
            if promised > done:
                left.append((disk, promised - done))

    def all_written(self, name: str) -> None:
        """Nothing more of what was promised in a folder will be written."""
        for disk, promised in self._left.pop(name, []):
            self._disks._written(disk, promised)

    def guard(self, now: str, *later: str) -> Guard:
        """For what is written to one folder now and kept in others later."""
        return self._disks._guard(now, later)

    def close(self) -> None:
        """Give back what was not used."""
        for name in list(self._left):
            self.all_written(name)


_CURRENT: ContextVar[Room | None] = ContextVar("esp_medsam_room", default=None)


def current_room() -> Room | None:
    """Of the request that is answered here; none in a process of its own."""
    return _CURRENT.get()


class Guard:
    """Called before something is written whose size is not known in advance; raises on no room.

    It may be sent to another process.

    Args:
        least_free: bytes that stay free on each disk.
        now: folder that is written to, by its name.
        later: folders in which all of it will be kept, likewise.
    """

    def __init__(
        self, least_free: int, now: tuple[str, Path], later: Mapping[str, Path] | None = None
    ) -> None:
        self._least_free = least_free
        self._now = now
        disk = disk_of(now[1])
        # on one and the same disk it is only given another name
        self._later = {
            name: folder for name, folder in (later or {}).items() if disk_of(folder) != disk
        }
        self._written = 0

    def __call__(self, size: int) -> None:
        """Before `size` bytes more are written.

        Raises:
            FullDiskError: there is too little room.
        """
        self._written += size
        asked = [(*self._now, size)]
        asked += [(name, folder, self._written) for name, folder in self._later.items()]
        for name, folder, more in asked:
            free = shutil.disk_usage(_there(folder)).free
            if free - more < self._least_free:
                raise too_full(name, free)


def full_disks(folders: Mapping[str, Path], least: float) -> list[str]:
    """A sentence for each disk with too little room, and for each folder that is not there.

    Args:
        folders: by what they are for.
        least: bytes that have to be free.
    """
    full: dict[int, tuple[list[str], int]] = {}
    missing = []
    for name, folder in folders.items():
        try:
            free, disk = shutil.disk_usage(folder).free, folder.stat().st_dev
        except OSError:
            missing.append(f"the folder of {name} is not there")
            continue
        if free < least:
            full.setdefault(disk, ([], free))[0].append(name)
    return [
        f"the disk of {' and '.join(names)} is full: {megabytes(free)} free, "
        f"{megabytes(least)} needed"
        for names, free in full.values()
    ] + missing


def advice_on_room(name: str, folder: Path) -> str:
    """What to do about a file that could not be written.

    Args:
        name: what the folder is for.
        folder: that it should have been written to.
    """
    try:
        free = megabytes(shutil.disk_usage(_there(folder)).free)
    except OSError:
        return f"The disk of {name} does not answer; tell the server's admin"
    return f"The disk of {name} has {free} free; if that is too little, make room on it"


def megabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / _MB:.0f} MB"


def disk_of(folder: Path) -> int:
    """The number of the disk that a folder is on, or will be on."""
    return os.stat(_there(folder)).st_dev


def too_full(name: str, free: int) -> FullDiskError:
    """The error of a disk with too little room."""
    return FullDiskError(
        f"the server's disk of the {name} has too little room ({megabytes(free)} are free)",
        remedy="Nothing was kept. Tell the server's admin, and send it again later",
    )


def full_disk(error: BaseException | None) -> FullDiskError | None:
    """What a client is told of an error that a full disk has caused; none if it was another."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, FullDiskError):
            return error
        if isinstance(error, OSError) and error.errno in _FULL:
            return _named(error.filename2 or error.filename)
        error = error.__cause__ or error.__context__
    return None


def _named(file: object) -> FullDiskError:
    """By the folder that a file lies in; without one, by the disk that has the least room."""
    folders = written_folders()
    free = {name: shutil.disk_usage(_there(folder)).free for name, folder in folders.items()}
    if isinstance(file, str | os.PathLike):
        holding = [name for name, folder in folders.items() if Path(file).is_relative_to(folder)]
        if holding:
            name = max(holding, key=lambda one: len(folders[one].parts))
            return too_full(name, free[name])
    name = min(free, key=lambda one: free[one])
    return too_full(name, free[name])


def _there(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    for one in (folder, *folder.absolute().parents):
        if one.is_dir():
            return one
    return Path("/")
