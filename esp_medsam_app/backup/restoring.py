"""Putting a backup in place: all of it, or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from esp_medsam_app.backup.archive import LIST, Contents, Entry
from esp_medsam_app.errors import EspMedSamError, InputError

_CHUNK = 1 << 20


def restore_backup(file: Path, targets: Mapping[str, Path]) -> Contents:
    """Unpack a backup into folders that hold nothing yet.

    Args:
        file: of the backup.
        targets: where to put what the backup has below a name, such as `studies`.

    Returns:
        What it consists of.

    Raises:
        InputError: it is no backup or damaged, or a folder is not empty.
        EspMedSamError: the files cannot be written.
    """
    for folder in targets.values():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                "there is something already, which a backup does not replace",
                path=folder,
                remedy="Restore into a new place, look whether all is there, then serve it",
            )
    aside = {name: folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.restore")
             for name, folder in targets.items()}  # fmt: skip
    try:
        contents = _unpacked(file, aside)
        for name, folder in targets.items():
            if aside[name].is_dir():
                if folder.is_dir():
                    folder.rmdir()
                os.replace(aside[name], folder)
    except OSError as error:
        raise EspMedSamError(
            f"the backup cannot be restored ({error.strerror or error})",
            path=error.filename or file,
            remedy="It needs folders that may be written to, on a disk with room for all of it",
        ) from error
    finally:
        for folder in aside.values():
            shutil.rmtree(folder, ignore_errors=True)
    return contents


def read_contents(file: Path) -> Contents:
    """The list of a backup.

    Raises:
        InputError: it is no backup, or not a whole one.
    """
    return _unpacked(file, {})


def _unpacked(file: Path, targets: Mapping[str, Path]) -> Contents:
    written: dict[Path, Entry] = {}
    contents: Contents | None = None
    try:
        with tarfile.open(file, "r|*") as tar:
            for member in tar:
                opened = tar.extractfile(member) if member.isreg() else None
                if opened is None:
                    raise InputError(f"{member.name!r} in it is no file", path=file)
                if member.name == LIST:
                    contents = Contents.model_validate_json(opened.read())
                    continue
                target = _target(member.name, targets)
                if target is not None:
                    written[target] = _write(opened, target, member)
    except (tarfile.TarError, EOFError, zlib.error, ValidationError) as error:
        raise _damaged(file, f"it cannot be read: {str(error).splitlines()[0]}") from error
    except FileNotFoundError as error:
        if error.filename == str(file):
            raise InputError("there is no such file", path=file) from error
        raise
    if contents is None:
        raise _damaged(file, f"it has no {LIST}: it is none, or was cut short")
    _check(file, contents, targets, written)
    return contents


def _check(
    file: Path, contents: Contents, targets: Mapping[str, Path], written: Mapping[Path, Entry]
) -> None:
    wanted = {
        target: (name, entry)
        for name, entry in contents.files.items()
        if (target := _target(name, targets)) is not None
    }
    for target, (name, entry) in wanted.items():
        if written.get(target) != entry:
            raise _damaged(file, f"{name} is not as it was written")
    for target in written.keys() - wanted.keys():
        # it was removed while the backup was written
        target.unlink()


def _target(name: str, targets: Mapping[str, Path]) -> Path | None:
    """Where a file of the backup goes; none where nobody wants it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InputError(f"the backup has a file {name!r}, which leads elsewhere")
    for prefix, folder in targets.items():
        if path.is_relative_to(prefix) and path != PurePosixPath(prefix):
            return folder / path.relative_to(prefix)
    return None


def _write(opened: object, target: Path, member: tarfile.TarInfo) -> Entry:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        while block := opened.read(_CHUNK):  # type: ignore[attr-defined]
            digest.update(block)
            size += len(block)
            file.write(block)
    os.utime(target, (member.mtime, member.mtime))
    return Entry(size=size, sha256=digest.hexdigest())


def _damaged(file: Path, problem: str) -> InputError:
    return InputError(
        f"this is no whole backup of `esp-medsam backup`: {problem}",
        path=file,
        remedy="Take another backup",
    )
