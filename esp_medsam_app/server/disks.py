"""How much room a disk has, in words: which disk, what is free, what is needed.

Folders go by what they are for, since clients are not to learn the server's paths.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

_MB = 1 << 20
TEMPORARY = "temporary files"


def full_disks(folders: Mapping[str, Path], least: float) -> list[str]:
    """A sentence for each disk with too little room, and for each folder that is not there.

    Args:
        folders: by what they are for.
        least: bytes that have to be free.
    """
    full: dict[int, tuple[list[str], int]] = {}
    missing = []
    for name, folder in folders.items():
        try:
            free, disk = shutil.disk_usage(folder).free, folder.stat().st_dev
        except OSError:
            missing.append(f"the folder of {name} is not there")
            continue
        if free < least:
            full.setdefault(disk, ([], free))[0].append(name)
    return [
        f"the disk of {' and '.join(names)} is full: {megabytes(free)} free, "
        f"{megabytes(least)} needed"
        for names, free in full.values()
    ] + missing


def room(name: str, folder: Path) -> str:
    """What to do about a file that could not be written.

    Args:
        name: what the folder is for.
        folder: that it should have been written to.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        free = megabytes(shutil.disk_usage(existing).free)
    except OSError:
        return f"The disk of {name} does not answer; tell the server's admin"
    return f"The disk of {name} has {free} free; if that is too little, make room on it"


def megabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / _MB:.0f} MB"
