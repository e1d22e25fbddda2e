"""Headers of NRRD files as text."""

from __future__ import annotations

from pathlib import Path

from esp_medsam_app.errors import InputError

# Slicer writes some hundred bytes for each segment.
LONGEST_HEADER = 4 << 20


def nrrd_lines(path: Path) -> list[bytes]:
    """The lines of a header, up to the empty one that ends it, or the file's end.

    Raises:
        InputError: the header does not end within four megabytes.
    """
    with path.open("rb") as file:
        begin = file.read(LONGEST_HEADER)
    header, blank, _ = begin.replace(b"\r\n", b"\n").partition(b"\n\n")
    if not blank and len(begin) >= LONGEST_HEADER:
        raise InputError("its header does not end", path=path, remedy="Export it again")
    # ITK ends a line at a carriage return as well
    return header.replace(b"\r", b"\n").split(b"\n")


def nrrd_texts(path: Path) -> dict[str, str]:
    """What programs note in a header: the pairs `key:=value`.

    Raises:
        InputError: as `nrrd_lines`.
    """
    found = {}
    for line in nrrd_lines(path):
        key, is_pair, value = line.decode(errors="replace").partition(":=")
        if is_pair and not key.startswith("#"):
            found[key] = value.replace("\\n", "\n").replace("\\\\", "\\")
    return found
