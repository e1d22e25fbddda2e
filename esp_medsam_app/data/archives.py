"""Archives that somebody sends: only plain files come out, only where they belong, not too much."""

from __future__ import annotations

import errno
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from esp_medsam_app.errors import EspMedSamError, FullDiskError, InputError

MOST_FILES = 20_000
MOST_BYTES = 8 << 30
_BLOCK = 1 << 20
# File systems take 255 bytes a name; whole paths have to leave room for where they are unpacked.
_LONGEST_NAME = 255
_LONGEST_PATH = 1024
# What a TAR archive says of a member beside its name.
_LONGEST_NOTE = 1 << 20


class _Member(tarfile.TarInfo):
    """A member whose notes are short: tarfile reads them as a whole, whatever their length."""

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check_note()
        return super()._proc_gnulong(archive)  # type: ignore[misc]

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check_note()
        return super()._proc_pax(archive)  # type: ignore[misc]

    def _check_note(self) -> None:
        if self.size > _LONGEST_NOTE:
            raise InputError("the archive says too much of one of its files")


def unpack(
    archive: Path,
    folder: Path,
    most_bytes: int = MOST_BYTES,
    ask: Callable[[int], object] | None = None,
) -> int:
    """Write the files of a ZIP or TAR archive below a folder; how many.

    Links and devices are left out.

    Args:
        archive: its file.
        folder: that is there.
        most_bytes: of all files together, as they come out.
        ask: called with the size of each block before it is written; raises where there is no
            room for it.

    Raises:
        InputError: no such archive, damaged, empty, too large, or a file in it would come to lie
            elsewhere.
    """
    count, left = 0, most_bytes
    try:
        for name, content in _files(archive):
            count += 1
            if count > MOST_FILES:
                raise InputError(f"the archive has more than {MOST_FILES} files")
            target = _inside(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as file:
                left -= _copy(content, file, left, ask)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
        raise InputError(f"the archive is damaged ({error})") from error
    except (RuntimeError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"the archive cannot be read ({error})") from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError("the archive has a file and a folder of one name") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (FullDiskError if full else EspMedSamError)(
            f"the archive cannot be unpacked ({error.strerror or error})",
            remedy="The server's disk may be full",
        ) from error
    if not count:
        raise InputError("there is no file in the archive")
    return count


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                # the upper half of a Unix archive's attributes is the file's mode
                is_link = (entry.external_attr >> 28) == 0o12
                if not entry.is_dir() and not is_link:
                    yield entry.filename, packed.open(entry)
        return
    with _opened(archive) as bundled:
        for member in bundled:
            content = bundled.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def _opened(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, tarinfo=_Member)
    except tarfile.TarError as error:
        raise InputError("not an archive: ZIP and TAR can be unpacked") from error


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise InputError(f"the archive has a file that would lie elsewhere: {name!r}")
    lengths = [len(os.fsencode(part)) for part in parts]
    if max(lengths) > _LONGEST_NAME or sum(lengths) + len(parts) > _LONGEST_PATH:
        raise InputError(f"the archive has a file whose name is too long: {name[:40]!r}...")
    target = folder.joinpath(*parts)
    if not target.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the archive has a file that would lie elsewhere: {name!r}")
    return target


def _copy(
    source: IO[bytes], target: IO[bytes], most: int, ask: Callable[[int], object] | None
) -> int:
    size = 0
    while block := source.read(_BLOCK):
        size += len(block)
        if size > most:
            raise InputError("the archive is too large when it is unpacked")
        if ask is not None:
            ask(len(block))
        target.write(block)
    return size


def only_folder(folder: Path) -> Path:
    """The folder in which all files of an archive lie, often one of its own inside the other."""
    entries = list(folder.iterdir())
    while len(entries) == 1 and entries[0].is_dir():
        folder = entries[0]
        entries = list(folder.iterdir())
    if len(entries) == 1:
        return entries[0]
    return folder
