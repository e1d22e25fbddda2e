"""`datastore_v2.json`, in which threads and processes change things at the same time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import LocalDatastoreModel

from esp_medsam_app.data.whole_files import remove_partials, written_whole
from esp_medsam_app.server.file_changes import FileChanges, Replacement

_LOCK_SECONDS = 60
# Inode, size and time of change: a coarse clock alone does not tell two versions apart.
_Stamp = tuple[int, int, int]
_JOURNAL = ".transaction.json"

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """What a transaction does.

    Attributes:
        model: as it is on disk when the transaction begins; to be altered in place.
        content: of the file that it was read from.
        files: files to put in place together with the model, each a target and its source or
            content.
        removed: files and folders to remove, likewise.
    """

    model: LocalDatastoreModel
    content: bytes = b""
    files: list[Replacement] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)


class DatastoreFile:
    """The datastore's model on disk: read by anybody, altered by one at a time.

    Writers hold one lock, which threads and processes share and which a thread may take again.
    They read the file anew, so that no change of another process is lost, and replace it whole.
    What belongs to a change, the voxels of a label and their description, changes at one moment,
    also where a process is killed; see `FileChanges`. A copy of what was written last lies beside
    the file, for the day when it is damaged. Readers take no lock unless a change is being made;
    they read again when there is another file.

    Args:
        path: of the file.
        model: what a new datastore begins with.
        read_only: whether a damaged file is left as it is.
        complete: adds to a model what the files on disk tell beyond it.
    """

    def __init__(
        self,
        path: Path,
        model: LocalDatastoreModel,
        *,
        read_only: bool,
        complete: Callable[[LocalDatastoreModel], object],
    ) -> None:
        self.path = path
        self.last_good = path.with_name(f"{path.name}.last_good")
        self._read_only = read_only
        self._complete = complete
        self._changes = FileChanges(path.with_name(_JOURNAL), path)
        self._base_path = model.base_path
        self._between_threads = threading.RLock()
        # of MONAI Label's own name, so that its processes and ours wait for each other
        self._between_processes = FileLock(path.with_name(".lock"), timeout=_LOCK_SECONDS)
        self._seen: tuple[_Stamp | None, LocalDatastoreModel] = (None, model)
        self._open: Change | None = None
        self._making: threading.Event | None = None

    def read(self) -> LocalDatastoreModel:
        """The model as it is on disk now; not to be altered."""
        stamp, model = self._seen
        is_seen = _stamp(self.path) == stamp
        # asked after the look at the file: a description that is new has its voxels in place
        if self._changes.is_open and not self._read_only:
            self._settle()
        elif is_seen:
            return model
        try:
            stamp, content = self._read()
            model = self._parsed(content)
            self._seen = (stamp, model)
            return model
        except (OSError, ValueError):
            if self._read_only:
                return self._restored("cannot be read").model
            with self._locked():
                return self._begun().model

    @contextmanager
    def transaction(self) -> Iterator[Change]:
        """Alter the model and its files; all of it when the block ends, or nothing if it raises.

        A transaction within another one of the same thread is a part of it.

        Raises:
            OSError: the folder cannot be written, or another process holds the lock for a minute.
        """
        with self._locked():
            if self._open is not None:
                yield self._open
                return
            self._open = self._begun()
            try:
                yield self._open
                self._commit(self._open)
            finally:
                self._open = None

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A block during which nobody else is in the middle of a transaction."""
        with self._locked():
            yield

    def remove_partials(self, folders: Iterable[Path]) -> int:
        """Remove what killed processes left half-written; how many files.

        Args:
            folders: that only transactions write to.
        """
        own = [self.path.name, self.last_good.name, self._changes.journal.name]
        with self._locked():
            return remove_partials(folders) + remove_partials([self.path.parent], of=own)

    def _settle(self) -> None:
        """Wait for a change that is being made, or complete it where its process was killed."""
        making = self._making
        if making is not None:
            # one of this process, which ends in a moment; others may wait for the lock
            making.wait(_LOCK_SECONDS)
            return
        try:
            with self._locked():
                pass
        except OSError:
            logger.warning("A change of %s cannot be completed", self.path, exc_info=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._between_threads, self._between_processes:
            # within a transaction nothing is left half-way
            if self._open is None and not self._read_only:
                self._changes.complete()
            yield

    def _begun(self) -> Change:
        try:
            _, content = self._read()
            return Change(self._parsed(content), content)
        except FileNotFoundError:
            if not self.last_good.exists() and self._seen[0] is None:
                return Change(self._seen[1].model_copy(deep=True))
            return self._restored("is not there any more")
        except ValueError as error:
            return self._restored(f"is damaged ({str(error).splitlines()[0]})")

    def _restored(self, problem: str) -> Change:
        """Begin from the last good copy, else from what this process knows, else from nothing."""
        try:
            model, source = self._parsed(self.last_good.read_bytes()), str(self.last_good)
        except (OSError, ValueError):
            model, source = self._seen[1].model_copy(deep=True), "memory and the files there are"
        change = Change(model)
        self._complete(model)
        if self._read_only:
            self._seen = (_stamp(self.path), model)
            kept = "it is left as it is"
        else:
            kept = self._put_aside()
            self._commit(change)
            change = Change(model.model_copy(deep=True), _dumped(model))
        logger.warning(
            "%s %s. Restored %d images with %d labels from %s; %s",
            self.path,
            problem,
            len(model.objects),
            sum(len(entry.labels) for entry in model.objects.values()),
            source,
            kept,
        )
        return change

    def _put_aside(self) -> str:
        if not self.path.exists():
            return "there was nothing to keep"
        name = f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        aside, number = self.path.with_name(name), 2
        while aside.exists():
            aside, number = self.path.with_name(f"{name}-{number}"), number + 1
        os.replace(self.path, aside)
        return f"the damaged file is kept as {aside.name}"

    def _commit(self, change: Change) -> None:
        content = _dumped(change.model)
        described: list[Replacement] = []
        if content != change.content or change.files or change.removed:
            described.append((self.path, content))
        if described:
            made = self._making = threading.Event()
            try:
                # a description that is read has its files in place
                self._changes.make([*change.files, *described], change.removed)
            finally:
                self._making = None
                made.set()
            self._seen = (_stamp(self.path), change.model)
            self._copy(content)

    def _copy(self, content: bytes) -> None:
        try:
            with written_whole(self.last_good) as partial:
                partial.write_bytes(content)
        except OSError:
            logger.warning("%s could not be renewed", self.last_good, exc_info=True)

    def _read(self) -> tuple[_Stamp, bytes]:
        with self.path.open("rb") as file:
            return _stamp_of(os.fstat(file.fileno())), file.read()

    def _parsed(self, content: bytes) -> LocalDatastoreModel:
        model = LocalDatastoreModel.model_validate_json(content)
        model.base_path = self._base_path
        return model


def _stamp(path: Path) -> _Stamp | None:
    try:
        return _stamp_of(path.stat())
    except OSError:
        return None


def _stamp_of(status: os.stat_result) -> _Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _dumped(model: LocalDatastoreModel) -> bytes:
    return bytes(model.model_dump_json(exclude={"base_path"}, indent=2).encode())
