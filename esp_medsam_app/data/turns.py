"""How a camera's picture is turned to be looked at: the orientation tag of EXIF and TIFF.

ITK, and so 3D Slicer, loads JPEG and PNG pictures as they are stored, whatever the tag says; of
TIFF it flips rows and columns, but never swaps them. Browsers and most picture programs obey it.
Here a picture's grid is ITK's. Networks and people are shown it turned, and a label map written as
PNG has the same tag, so that programs that obey the tag turn both alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The tag's number, in EXIF and in TIFF.
TAG = 0x0112


class Turn(NamedTuple):
    """From a stored picture to an upright one: rows and columns are swapped first, then flipped."""

    swapped: bool = False
    rows: bool = False
    columns: bool = False

    def apply(self, picture: NDArray[Any]) -> NDArray[Any]:
        """`[rows, columns, ...]`, upright."""
        turned = np.swapaxes(picture, 0, 1) if self.swapped else picture
        return np.flip(turned, self._axes())

    def undo(self, upright: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `apply`."""
        turned = np.flip(upright, self._axes())
        return np.swapaxes(turned, 0, 1) if self.swapped else turned

    def _axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, flipped in enumerate(self[1:]) if flipped)


UPRIGHT = Turn()
_TURNS = {
    1: UPRIGHT,
    2: Turn(columns=True),
    3: Turn(rows=True, columns=True),
    4: Turn(rows=True),
    5: Turn(swapped=True),
    6: Turn(swapped=True, columns=True),
    7: Turn(swapped=True, rows=True, columns=True),
    8: Turn(swapped=True, rows=True),
}
_ORIENTATIONS = {turn: orientation for orientation, turn in _TURNS.items()}


def turn_of(orientation: object) -> Turn:
    """What a tag's value asks for; values that the standard does not know ask for nothing."""
    return _TURNS.get(orientation, UPRIGHT) if isinstance(orientation, int) else UPRIGHT


def orientation_of(turn: Turn) -> int:
    """The tag's value for a turn."""
    return _ORIENTATIONS[turn]


def flipped_by_itk(turn: Turn) -> Turn:
    """What ITK makes of a TIFF that asks for this turn: it flips as if nothing were swapped."""
    # the values 5 to 8 stand for the flips of 1 to 4, along the other axes
    return _TURNS[(orientation_of(turn) - 1) % 4 + 1]


def after(first: Turn, whole: Turn) -> Turn:
    """What is left of `whole` once the flips of `first` were made."""
    rows, columns = (first.columns, first.rows) if whole.swapped else (first.rows, first.columns)
    return Turn(whole.swapped, whole.rows != rows, whole.columns != columns)
