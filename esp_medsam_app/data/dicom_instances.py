"""Which instances of a series are its images: copies count once, captures of a screen do not."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset

# Secondary Capture, and its multi-frame kinds (PS3.4 B.5).
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"


class Instances(NamedTuple):
    """The instances of a series.

    Attributes:
        images: those to read.
        captures: left out: pictures of a screen among images of a scanner.
    """

    images: list[Dataset]
    captures: list[Dataset]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was left out, for people."""
        if not self.captures:
            return ()
        names = ", ".join(sorted(_file_of(header).name for header in self.captures)[:5])
        more = ", ..." if len(self.captures) > 5 else ""
        return (
            f"{len(self.captures)} secondary captures among the images, such as pictures of a "
            f"report, were left out: {names}{more}",
        )


def without_copies(headers: Iterable[Dataset]) -> list[Dataset]:
    """Each instance once, of those with the same UID and the same bytes.

    Some anonymisers give every slice the same UID: what differs is no copy.
    """
    groups: dict[str, list[Dataset]] = defaultdict(list)
    for header in headers:
        known = groups[str(header.get("SOPInstanceUID") or id(header))]
        if not any(_same(header, other) for other in known):
            known.append(header)
    return [header for group in groups.values() for header in group]


def without_captures(images: Sequence[Dataset]) -> Instances:
    """Leave out secondary captures that have no place beside images that have one."""
    captures = [header for header in images if is_capture(header)]
    if not any(is_placed(header) for header in images if not is_capture(header)):
        captures = []
    kept = [header for header in images if all(header is not other for other in captures)]
    return Instances(kept, captures)


def is_capture(header: Dataset) -> bool:
    """Whether an image is a secondary capture without a place."""
    uid = str(header.get("SOPClassUID", ""))
    return (uid == _CAPTURES or uid.startswith(_CAPTURES + ".")) and not is_placed(header)


def is_placed(header: Dataset) -> bool:
    """Whether an image says where it, or each of its frames, lies."""
    return "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header


def _same(one: Dataset, other: Dataset) -> bool:
    files = _file_of(one), _file_of(other)
    if all(file.is_file() for file in files):
        return filecmp.cmp(*files, shallow=False)
    # an archive gives each UID to one instance
    return True


def _file_of(header: Dataset) -> Path:
    return Path(str(getattr(header, "filename", None) or ""))
