"""Writing a backup while the server goes on working.

All files are written first, which may take long and holds nobody up. Then, while labels and
versions wait, those that have changed meanwhile are written once more; of two files of a name, the
later one counts. Last comes the list of what the backup consists of, with every file's SHA-256. So
a backup is as the server was at one moment, and one that was cut short has no list.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from esp_medsam_app import __version__
from esp_medsam_app.backup.places import DICOM, MODEL, STUDIES, VERSIONS, Place
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import EspMedSamError, InputError

LIST = "backup.json"
_LOCK_SECONDS = 60
_DATABASES = (".sqlite3", ".db")
# inode, size and time of change
_Stamp = tuple[int, int, int]


class Entry(BaseModel):
    """A file of a backup: bytes and SHA-256."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Contents(BaseModel):
    """The content of `backup.json`.

    Attributes:
        schema_version: of this file.
        created: in UTC.
        software: version that made it.
        studies: what the server served.
        files: by their names in the backup.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    schema_version: Literal[1] = 1
    created: datetime
    software: str
    studies: str
    files: dict[str, Entry]


def write_backup(output: Path, studies: str, places: Sequence[Place]) -> Contents:
    """Write a backup; it appears whole or not at all.

    Args:
        output: a .tar or .tar.gz file that is not there yet.
        studies: what the server serves.
        places: folders to keep.

    Raises:
        InputError: the file is there, has another name or lies in what it is to hold.
        EspMedSamError: something cannot be read or written, or is being written for a minute.
    """
    _check(output, places)
    compress = output.name.endswith("gz")
    try:
        with written_whole(output) as partial, _opened(partial, compress) as tar:
            os.chmod(partial, 0o600)
            writer = _Writer(tar)
            writer.add_all(places)
            with _settled(places):
                writer.add_all(places)
            contents = Contents(
                created=datetime.now(timezone.utc),
                software=__version__,
                studies=studies,
                files=writer.files,
            )
            writer.add_text(LIST, contents.model_dump_json(indent=1))
    except OSError as error:
        raise EspMedSamError(
            f"the backup cannot be written ({error.strerror or error})",
            path=error.filename or output,
            remedy="It needs a disk with room for all images, labels and versions",
        ) from error
    return contents


class _Writer:
    """Adds files to a tar file, each again only if it has changed."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._known: dict[str, tuple[_Stamp, Entry]] = {}
        self.files: dict[str, Entry] = {}

    def add_all(self, places: Sequence[Place]) -> None:
        """Everything that is there now."""
        self.files = {}
        for place in places:
            for name, file in place.files():
                try:
                    self._add(name, file)
                except FileNotFoundError:
                    # a label that was replaced has another suffix, say
                    continue

    def add_text(self, name: str, text: str) -> None:
        """A file of this text."""
        content = text.encode()
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o600
        self._tar.addfile(info, io.BytesIO(content))

    def _add(self, name: str, file: Path) -> None:
        stamp = _stamp(file.stat())
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            with _content(file) as opened:
                known = stamp, self._write(name, opened)
            self._known[name] = known
        self.files[name] = known[1]

    def _write(self, name: str, opened: IO[bytes]) -> Entry:
        status = os.fstat(opened.fileno())
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = status.st_size, status.st_mtime, 0o600
        digest = _Digest(opened)
        self._tar.addfile(info, digest)
        return Entry(size=info.size, sha256=digest.value())


class _Digest(io.RawIOBase):
    """Reads as much of a file as there was, and knows the SHA-256 of it.

    A log grows while it is read: what was there counts. One that is cut meanwhile, as logrotate
    does, gets empty lines.
    """

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened
        self._sum = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._opened.read(size)
        block += b"\n" * (size - len(block))
        self._sum.update(block)
        return block

    def value(self) -> str:
        return self._sum.hexdigest()


@contextmanager
def _content(file: Path) -> Iterator[IO[bytes]]:
    """A file to read; of a database, a copy that no transaction is in the middle of."""
    if file.name.endswith(_DATABASES):
        with tempfile.TemporaryDirectory(prefix="esp_medsam_") as folder:
            copied = Path(folder, "copy")
            try:
                source = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
                with closing(source), closing(sqlite3.connect(copied)) as target:
                    source.backup(target)
                with copied.open("rb") as opened:
                    yield opened
                return
            except sqlite3.Error:
                # damaged: it is kept as it is
                pass
    with file.open("rb") as opened:
        yield opened


@contextmanager
def _settled(places: Sequence[Place]) -> Iterator[None]:
    """A block during which nobody changes labels or versions."""
    locks = []
    for place in places:
        if place.name == STUDIES:
            locks.append(place.folder / ".lock")
        elif place.name == DICOM:
            locks += [file.with_name(".lock") for file in place.folder.glob("*/datastore_v2.json")]
        elif place.name == VERSIONS:
            locks.append(place.folder / ".lock")
        elif place.name == MODEL and (place.folder / "versions").is_dir():
            locks.append(place.folder / "versions" / ".lock")
    try:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(FileLock(lock, timeout=_LOCK_SECONDS))
            yield
    except Timeout as error:
        raise EspMedSamError(
            f"another process has been writing for {_LOCK_SECONDS} s",
            path=error.lock_file,
            remedy="Try again when it has finished",
        ) from error


@contextmanager
def _opened(path: Path, compress: bool) -> Iterator[tarfile.TarFile]:
    # images and labels are packed already: more than the lowest level is time for nothing
    if compress:
        with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as tar:
            yield tar
    else:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            yield tar


def _check(output: Path, places: Sequence[Place]) -> None:
    if not output.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise InputError(
            "a backup is a tar file", path=output, remedy="Name it .tar, or .tar.gz to pack it"
        )
    if output.exists():
        raise InputError("there is such a file already", path=output, remedy="Take another name")
    for place in places:
        if output.resolve().is_relative_to(place.folder.resolve()):
            raise InputError(
                f"the backup would lie in {place.folder}, and hold itself",
                path=output,
                remedy="Write it to another folder, best on another disk",
            )


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns
