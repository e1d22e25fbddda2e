"""Whose files this process reads: its user's own, or such as others send.

Files are from outside unless the process says otherwise, so that a server, what it starts and
what imports this package are strict by themselves. The command line reads files that its user
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_own = False


@contextmanager
def own_files() -> Iterator[None]:
    """Take the files that this process reads in a block for its user's own.

    Headers may then name files beside them or below, and a small file may hold a large image.
    """
    global _own
    before, _own = _own, True
    try:
        yield
    finally:
        _own = before


def files_are_own() -> bool:
    """Whether the files that are read are the user's own."""
    return _own
