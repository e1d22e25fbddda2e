"""Archives that somebody sends: only plain files come out, only where they belong, not too much."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from esp_medsam_app.errors import InputError

MOST_FILES = 20_000
MOST_BYTES = 8 << 30
_BLOCK = 1 << 20


def unpack(
    archive: Path,
    folder: Path,
    most_bytes: int = MOST_BYTES,
    ask: Callable[[int], object] = lambda size: None,
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
    except (RuntimeError, ValueError, zlib.error) as error:
        raise InputError(f"the archive cannot be read ({error})") from error
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError("the archive has a file and a folder of one name") from error
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
    if not tarfile.is_tarfile(archive):
        raise InputError("not an archive: ZIP and TAR can be unpacked")
    with tarfile.open(archive) as bundled:
        for member in bundled:
            content = bundled.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise InputError(f"the archive has a file that would lie elsewhere: {name!r}")
    target = folder.joinpath(*parts)
    if not target.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the archive has a file that would lie elsewhere: {name!r}")
    return target


def _copy(source: IO[bytes], target: IO[bytes], most: int, ask: Callable[[int], object]) -> int:
    size = 0
    while block := source.read(_BLOCK):
        size += len(block)
        if size > most:
            raise InputError("the archive is too large when it is unpacked")
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
