"""NRRD and MetaImage headers that name other files: where the voxels of an image lie.

ITK opens whatever path a header names: another user's file, a device, a pipe that never ends. So
the header is read here first, and ITK only opens what has passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from esp_medsam_app.data.formats import suffix_of
from esp_medsam_app.data.nrrd_header import LONGEST_HEADER, nrrd_lines
from esp_medsam_app.data.trust import files_are_own
from esp_medsam_app.errors import InputError

_NRRD = (".nrrd", ".seg.nrrd", ".nhdr")
_META = (".mha", ".mhd")
_MOST_FILES = 20_000
_LOCAL = ("LOCAL", "Local", "local")
_NUMBERED = re.compile(r"(?P<name>[^%]*%0?\d{0,2}d[^%]*?)((?:\s+-?\d{1,7}){3,4})")
# what NRRD's and MetaImage's parsers may take for the field, and what only looks like it
_NRRD_FIELD = re.compile(rb"\s*data[\s_-]*file\s*:", re.IGNORECASE)
_META_FIELD = re.compile(rb"ElementDataFile", re.IGNORECASE)
_META_LINE = re.compile(rb"[ \t]*ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*?)[ \t]*(?:\r?\n|\Z)")


class _Named(NamedTuple):
    """What a header says of its voxels' files: a name or the word LIST, and the lines after it."""

    text: str
    further: list[str]


def check_attached(path: Path) -> None:
    """Whether a file that came from outside holds its own voxels; by its name's format.

    Raises:
        InputError: it is an NRRD or MetaImage file whose voxels lie in another file.
    """
    if _named(path) is not None:
        raise InputError(
            "its voxels lie in another file",
            path=path,
            remedy="Save it as one file (.nrrd, .mha or .nii.gz) that holds header and voxels",
        )


def voxel_files(path: Path) -> list[Path]:
    """The files that hold the voxels of an NRRD or MetaImage file: itself, or those it names.

    Raises:
        InputError: it names other files although it came from outside, or one that does not lie
            beside it or below, is missing, or is no plain file.
    """
    if not files_are_own():
        check_attached(path)
        return [path]
    named = _named(path)
    if named is None:
        return [path]
    folder = path.parent.resolve()
    found = []
    for name in _names(named, path):
        try:
            # links may lie within the folder too
            file = (path.parent / name).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"its header names {name!r}, which is no file's name", path=path
            ) from error
        if not file.is_relative_to(folder):
            raise InputError(
                f"its header names {name}, which does not lie beside it or below",
                path=path,
                remedy="Copy header and voxels into one folder, or save the image as one file",
            )
        if not file.exists():
            raise InputError(
                f"its header names {name}, which is not there",
                path=path,
                remedy="Copy the file with the voxels too",
            )
        if not file.is_file():
            raise InputError(f"its header names {name}, which is no file", path=path)
        found.append(file)
    return found


def _named(path: Path) -> _Named | None:
    """What the header names; none if the voxels follow it, or the file is of another format."""
    suffix = suffix_of(path)
    if suffix not in _NRRD and suffix not in _META:
        return None
    if suffix in _NRRD:
        return _named_by_nrrd(nrrd_lines(path), path)
    with path.open("rb") as file:
        return _named_by_meta(file.read(LONGEST_HEADER), path)


def _named_by_nrrd(lines: list[bytes], path: Path) -> _Named | None:
    fields = [place for place, line in enumerate(lines) if _NRRD_FIELD.match(line)]
    if not fields:
        return None
    further = [line.decode(errors="replace").strip() for line in lines[fields[0] + 1 :]]
    value = lines[fields[0]].partition(b":")[2].decode(errors="replace").strip()
    if len(fields) > 1 or value.startswith("="):
        raise InputError("its header is ambiguous about where the voxels lie", path=path)
    return _Named(value, [line for line in further if line])


def _named_by_meta(begin: bytes, path: Path) -> _Named | None:
    fields = list(_META_FIELD.finditer(begin))
    if not fields:
        raise InputError(
            "the file is truncated, damaged or not what its name says (no ElementDataFile)",
            path=path,
            remedy="Export or copy it again",
        )
    # the line before may have ended at a carriage return, or not
    start = max(begin.rfind(b"\n", 0, fields[0].start()), -1) + 1
    line = _META_LINE.match(begin, start)
    if len(fields) > 1 or line is None:
        raise InputError("its header is ambiguous about where the voxels lie", path=path)
    value = line[1].decode(errors="replace")
    if value in _LOCAL:
        return None
    further = begin[line.end() :].decode(errors="replace").splitlines()
    return _Named(value, [name.strip() for name in further if name.strip()])


def _names(named: _Named, path: Path) -> Iterator[str]:
    """The names one by one: a single one, a list, or numbered ones (`slice%03d.raw 1 60 1`)."""
    if re.fullmatch(r"LIST(\s+\d+)?", named.text):
        if not 0 < len(named.further) <= _MOST_FILES:
            raise InputError(f"its header lists {len(named.further)} files", path=path)
        yield from named.further
        return
    if "%" not in named.text:
        yield named.text
        return
    found = _NUMBERED.fullmatch(named.text)
    first, last, step = (int(word) for word in found[2].split()[:3]) if found else (0, 0, 0)
    count = (last - first) // step + 1 if step else 0
    if not found or not 0 < count <= _MOST_FILES:
        raise InputError(
            f"its header names its files by {named.text!r}, which cannot be read",
            path=path,
            remedy="Save the image as one file",
        )
    for number in range(count):
        yield found["name"] % (first + number * step)
