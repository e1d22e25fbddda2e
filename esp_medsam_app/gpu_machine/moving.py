"""Tracked files that do not travel are moved aside, and put back.

Every file is moved by one rename, so that it is always in one of two places, whenever a call is
stopped: at its own path, or at the same path below the folder aside. `put_back` reads that folder
alone, and needs no list of what was moved.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.places import FOLDER

# what the machine runs: the package without its weights, the scripts
_STAY_BELOW = ("esp_medsam_app/", "scripts/")
_STAY = (".gitignore", "pyproject.toml", "LICENSE")
_WEIGHTS = ".safetensors"


def tracked(root: Path) -> list[Path]:
    """Files that git knows and that are there, relative to the root."""
    return _listed(root, "--cached")


def unknown_to_git(root: Path) -> list[Path]:
    """Files that git neither knows nor ignores: they travel too."""
    return _listed(root, "--others", "--exclude-standard")


def stays(file: Path) -> bool:
    """Whether a tracked file travels."""
    name = file.as_posix()
    if name in _STAY:
        return True
    return name.startswith(_STAY_BELOW) and not name.endswith(_WEIGHTS)


def move_aside(root: Path, aside: Path) -> list[Path]:
    """Move tracked files that do not travel; those that were moved.

    Raises:
        InputError: a file of that path is aside already.
    """
    moved = []
    for file in tracked(root):
        if stays(file):
            continue
        target = aside / file
        if os.path.lexists(target):
            raise _in_both(root / file, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(root / file, target)
        moved.append(file)
    return moved


def put_back(root: Path, aside: Path) -> list[Path]:
    """Move all that is aside to where it belongs; what was moved.

    A file that has been restored meanwhile, such as by git, is kept once.

    Raises:
        InputError: a file is in both places with different content. All others were put back.
    """
    moved, clashing = [], []
    for file in _files_below(aside):
        place, target = aside / file, root / file
        if os.path.lexists(target):
            if not _same(place, target):
                clashing.append(file)
                continue
            place.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(place, target)
        moved.append(file)
    _remove_empty(aside)
    if clashing:
        raise _in_both(root / clashing[0], aside / clashing[0])
    return moved


def _listed(root: Path, *options: str) -> list[Path]:
    done = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", *options], capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(
            f"git does not list its files ({done.stderr.strip()})",
            path=root,
            remedy="Call this in the root of the project's working tree",
        )
    names = [name for name in done.stdout.split("\0") if name]
    return [Path(name) for name in sorted(set(names)) if os.path.lexists(root / name)]


def _files_below(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, relative to it."""
    for place, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted(names + links):
            yield (Path(place) / name).relative_to(folder)


def _same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        both = one.is_symlink() and other.is_symlink()
        return both and os.readlink(one) == os.readlink(other)
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def _remove_empty(folder: Path) -> None:
    for place, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(place):
            os.rmdir(place)


def _in_both(file: Path, aside: Path) -> InputError:
    return InputError(
        f"a file of this path lies in {FOLDER} too ({aside}), with other content",
        path=file,
        remedy="Compare the two, remove the one that is not wanted, and call unpack again",
    )
