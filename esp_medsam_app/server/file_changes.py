"""Several files of a folder that change together: all of them or none, also after `kill -9`.

The new contents are written beside the files that they replace. Then one file, the journal, says
which file takes which place and what is removed; its appearance is the moment at which the change
is made. A process that ends before it leaves the folder as it was. After it, whoever opens the
folder next completes the change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.utils.others.generic import remove_file

from esp_medsam_app.data.whole_files import partial_of

_VERSION = 1


@dataclass(frozen=True)
class Kept:
    """The content of a file that the same change replaces or removes: it need not be copied.

    Attributes:
        path: of the file.
    """

    path: Path


Content = Path | bytes | Kept
Replacement = tuple[Path, Content]

logger = logging.getLogger(__name__)


class FileChanges:
    """The changes of one folder. Its callers hold a lock: one change at a time.

    Args:
        journal: file that is there only while a change is made.
        described: the file that every change of several files replaces as well. A journal that
            fits neither its content before nor the one after belongs to another time: somebody
            worked on without completing the change, for instance with a release that knows no
            journal. Such a journal is dropped.
    """

    def __init__(self, journal: Path, described: Path) -> None:
        self.journal = journal
        self._described = described
        self._folder = journal.parent

    @property
    def is_open(self) -> bool:
        """Whether a change is being made, or was left half-way."""
        return self.journal.exists()

    def make(self, replaced: Sequence[Replacement], removed: Sequence[Path]) -> None:
        """Put files in place, in this order, and remove others.

        Args:
            replaced: targets, each with its content, the file to copy or the one to keep.
            removed: files and folders.

        Raises:
            OSError: before the journal is there, nothing has changed. Afterwards the change is
                made, and `complete` does what is left of it.
        """
        staged: list[tuple[Path, Path]] = []
        written: list[Path] = []
        try:
            for target, source in replaced:
                partial = partial_of(target)
                staged.append((partial, target))
                if _write(partial, source):
                    written.append(partial)
            if len(staged) == 1 and not removed:
                # a single replacement is all or nothing by itself
                _to_disk(written)
                os.replace(*staged[0])
                return
            self._announce(staged, removed, written)
        except BaseException:
            for partial, _ in staged:
                partial.unlink(missing_ok=True)
            raise
        self._apply(staged, removed)

    def complete(self) -> bool:
        """Do what is left of a change that was made half-way; whether there was one.

        Raises:
            OSError: the folder cannot be written.
        """
        try:
            told = json.loads(self.journal.read_bytes())
            staged = [(self._inside(one), self._inside(other)) for one, other in told["replace"]]
            removed = [self._inside(one) for one in told["remove"]]
            known = [told["before"], told["after"]]
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read, and is removed", self.journal)
            self.journal.unlink()
            return True
        if _digest(self._described) not in known:
            logger.warning("%s belongs to an earlier state of the folder; removed", self.journal)
            for partial, _ in staged:
                partial.unlink(missing_ok=True)
            self.journal.unlink()
            return True
        self._apply(staged, removed)
        logger.info("Completed a change of %d files that was left half-way", len(staged))
        return True

    def _announce(
        self,
        staged: Sequence[tuple[Path, Path]],
        removed: Sequence[Path],
        written: Sequence[Path],
    ) -> None:
        before = _digest(self._described)
        after = next((_digest(one) for one, other in staged if other == self._described), before)
        told: dict[str, Any] = {
            "version": _VERSION,
            "before": before,
            "after": after,
            "replace": [[self._relative(one), self._relative(other)] for one, other in staged],
            "remove": [self._relative(path) for path in removed],
        }
        partial = partial_of(self.journal)
        try:
            _write(partial, json.dumps(told).encode())
            # all of them together: the disk is waited for once, not for each
            _to_disk([*written, partial])
            os.replace(partial, self.journal)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _apply(self, staged: Sequence[tuple[Path, Path]], removed: Sequence[Path]) -> None:
        for partial, target in staged:
            # it is in its place already where a process was killed in between
            with suppress(FileNotFoundError):
                os.replace(partial, target)
        for path in removed:
            remove_file(str(path))
        self.journal.unlink(missing_ok=True)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self._folder)

    def _inside(self, name: str) -> Path:
        """A path of the journal: a folder from elsewhere may bring one that names other files."""
        path = self._folder / name
        real = (path.parent.resolve() / path.name).resolve()
        if real == self._folder.resolve() or not real.is_relative_to(self._folder.resolve()):
            raise ValueError(name)
        return path


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def _write(path: Path, source: Content) -> bool:
    """Write a file; whether its content is not on the disk yet."""
    try:
        if isinstance(source, bytes):
            path.write_bytes(source)
            return True
        if isinstance(source, Kept):
            with suppress(OSError):
                os.link(source.path, path)
                return False
            # not every file system can do this
            source = source.path
        shutil.copyfile(source, path)
        return True
    except OSError as error:
        # the system does not tell which file it could not write on
        error.filename = error.filename or str(path)
        raise


def _to_disk(paths: Sequence[Path]) -> None:
    """Wait for the disk: a loss of power leaves no empty file."""
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
