"""`datastore_v2.json`, in which threads and processes change things at the same time."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import LocalDatastoreModel
from monailabel.utils.others.generic import remove_file

from esp_medsam_app.data.whole_files import written_whole

_LOCK_SECONDS = 60
# Inode, size and time of change: a coarse clock alone does not tell two versions apart.
_Stamp = tuple[int, int, int]
_Files = list[tuple[Path, "Path | bytes"]]

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """What a transaction does.

    Attributes:
        model: as it is on disk when the transaction begins; to be altered in place.
        content: of the file that it was read from.
        history: files to put in place before the model, each a target and its source or content.
        files: files to put in place right after the model, likewise.
        removed: files and folders to remove when all that is done.
    """

    model: LocalDatastoreModel
    content: bytes = b""
    history: _Files = field(default_factory=list)
    files: _Files = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)


class DatastoreFile:
    """The datastore's model on disk: read by anybody, altered by one at a time.

    Writers hold one lock, which threads and processes share and which a thread may take again.
    They read the file anew, so that no change of another process is lost, and replace it whole.
    A copy of what was written last lies beside it, for the day when the file is damaged. Readers
    take no lock; they read again when there is another file.

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
        self._base_path = model.base_path
        self._between_threads = threading.RLock()
        # of MONAI Label's own name, so that its processes and ours wait for each other
        self._between_processes = FileLock(path.with_name(".lock"), timeout=_LOCK_SECONDS)
        self._seen: tuple[_Stamp | None, LocalDatastoreModel] = (None, model)
        self._open: Change | None = None

    def read(self) -> LocalDatastoreModel:
        """The model as it is on disk now; not to be altered."""
        stamp, model = self._seen
        if _stamp(self.path) == stamp:
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

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._between_threads, self._between_processes:
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
        if content != change.content or change.history or change.files:
            # Everything is on disk before the first file takes its place; the last one entered
            # is the first to do so.
            with ExitStack() as stack:
                for target, source in [*change.files, (self.path, content), *change.history]:
                    _write_through(stack.enter_context(written_whole(target)), source)
            self._seen = (_stamp(self.path), change.model)
            self._copy(content)
        for path in change.removed:
            remove_file(str(path))

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


def _write_through(path: Path, source: Path | bytes) -> None:
    """Write a file and wait for the disk: a loss of power leaves no empty one."""
    if isinstance(source, bytes):
        path.write_bytes(source)
    else:
        shutil.copyfile(source, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
