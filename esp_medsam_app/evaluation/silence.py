"""Staying silent: how often something is marked where the structure is absent.

Dice says little about it: an empty reference gives 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.errors import EspMedSamError

# A slice counts as marked when more than this share of its pixels is.
MARKED = 0.001
# of the normal distribution, for a 95 % interval
_Z = 1.96


@dataclass(frozen=True)
class Silence:
    """Slices without the structure, and how many of them were marked nevertheless."""

    slices: int = 0
    marked: int = 0

    @classmethod
    def of(cls, prediction: np.ndarray, grid: Grid, reference: np.ndarray | None = None) -> Silence:
        """Count one image; with a reference, only slices on which it is empty."""
        view = SliceView.of(grid)
        shares = (view.slices(prediction) > 0).mean(axis=(1, 2))
        if reference is not None:
            shares = shares[~view.slices(reference).any(axis=(1, 2))]
        return cls(len(shares), int((shares > MARKED).sum()))

    def __add__(self, other: Silence) -> Silence:
        return Silence(self.slices + other.slices, self.marked + other.marked)

    @property
    def share(self) -> float | None:
        """Marked slices over all; `None` without any."""
        return self.marked / self.slices if self.slices else None

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the share, as if slices were independent."""
        if self.share is None:
            return None
        weight = _Z**2 / self.slices
        middle = (self.share + weight / 2) / (1 + weight)
        reach = math.sqrt(self.share * (1 - self.share) * weight + weight**2 / 4) / (1 + weight)
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "slices": self.slices,
            "marked": self.marked,
            "share": self.share,
            "ci95": None if self.ci95 is None else list(self.ci95),
        }

    def __str__(self) -> str:
        if self.share is None or self.ci95 is None:
            return "no slice without the structure"
        low, high = self.ci95
        return (
            f"{self.marked} of {self.slices} slices without the structure marked "
            f"({self.share:.1%}, 95 % interval {low:.1%} to {high:.1%})"
        )


NONE = Silence()


def measure_silence(
    images: Iterable[Path],
    predict: Callable[[MedicalImage], np.ndarray],
    on_image: Callable[[], None] = lambda: None,
    on_failure: Callable[[Path, EspMedSamError], None] | None = None,
) -> Silence:
    """Predict images that do not hold the structure at all.

    An image that cannot be read or predicted raises EspMedSamError; with `on_failure` that is
    called instead and the others go on.
    """
    total = NONE
    for path in images:
        try:
            image = read_image(path)
            total += Silence.of(predict(image), image.grid)
        except EspMedSamError as error:
            if on_failure is None:
                raise
            on_failure(path, error)
        on_image()
    return total
