"""Files that appear whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.(.+)")


logger = logging.getLogger(__name__)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, of the same suffix; it takes `path`'s place at the end.

    When writing fails, what stood at `path` before stands there still, and nothing else is left.
    """
    partial = partial_of(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """A name beside `path` to write to, in a folder that is there afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{uuid.uuid4().hex}.{path.name}")


def remove_partials(
    folders: Iterable[Path], older_than: float = 0.0, of: Container[str] | None = None
) -> int:
    """Remove what `written_whole` left in some folders when its process was killed; how many.

    Folders below these are left alone, and so are files that cannot be removed.

    Args:
        folders: that nobody writes to at the moment; those that are not there count not.
        older_than: seconds since the last change, where somebody may write.
        of: names of the files that were to be written; any by default.
    """
    latest, count = time.time() - older_than, 0
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for entry in list(os.scandir(folder)):
                found = _PARTIAL.fullmatch(entry.name)
                if not found or not entry.is_file(follow_symlinks=False):
                    continue
                if of is not None and found[1] not in of:
                    continue
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime <= latest or not older_than:
                        os.unlink(entry.path)
                        count += 1
    return count


def sweep(folder: Path, older_than: float) -> None:
    """Remove what killed processes left half-written anywhere below a folder.

    Args:
        folder: of any depth.
        older_than: seconds since the last change: others may be writing.
    """
    count = remove_partials((Path(one) for one, _, _ in os.walk(folder)), older_than)
    if count:
        logger.info("Removed %d files below %s that were left half-written", count, folder)
