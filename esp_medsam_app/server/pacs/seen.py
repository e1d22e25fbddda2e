"""Segmentations of the PACS that need no more looking at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


class SeenSegmentations:
    """UIDs of segmentations that this server has stored, taken over or been told to forget.

    They are in a file of a line each, to which processes add; a line that a crash cut short is
    none that anybody asks for.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = -1
        self._known: frozenset[str] = frozenset()

    def __contains__(self, uid: str) -> bool:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return False
        if size != self._size:
            self._known = frozenset(self._path.read_text().split())
            self._size = size
        return uid in self._known

    def add(self, uids: Iterable[str]) -> None:
        """Remember, before anything else happens."""
        new = [uid for uid in uids if uid not in self]
        if not new:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write("\n" + "\n".join(new) + "\n")
            file.flush()
            os.fsync(file.fileno())
