"""Disks of any size, which fill as they are written to."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Usage = namedtuple("Usage", "total used free")
MB = 1 << 20


def small_disks(
    monkeypatch: pytest.MonkeyPatch, sizes_mb: Mapping[Path, float]
) -> Callable[[Path], float]:
    """Give folders disks of their own with this much room; all others have plenty.

    Returns what has been written below a folder, MB.
    """

    def written(folder: Path) -> float:
        return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / MB

    before = {folder: written(folder) for folder in sizes_mb}

    def number(path: str | Path) -> int:
        sized = [Path(path).is_relative_to(folder) for folder in sizes_mb]
        return sized.index(True) if any(sized) else -1

    def usage(path: str | Path) -> Usage:
        for folder, size in sizes_mb.items():
            if Path(path).is_relative_to(folder):
                free = int((size - written(folder) + before[folder]) * MB)
                return Usage(1 << 40, (1 << 40) - free, free)
        return Usage(1 << 40, 0, 1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr("esp_medsam_app.server.disks.disk_of", number)
    return written
