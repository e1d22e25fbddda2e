"""How well modalities are read from images: right, wrong, and asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esp_medsam_app.inference.modality_reader import ModalityReading


@dataclass
class Tally:
    """What came of the images of one modality.

    Attributes:
        images: how many there are.
        asked: about which nothing was decided.
        taken_for: modality that was decided on, to number of images.
        likeliest: how many would have been right without a threshold.
    """

    images: int = 0
    asked: int = 0
    taken_for: Counter[str] = field(default_factory=Counter)
    likeliest: int = 0

    def as_json(self, truth: str) -> dict[str, Any]:
        """Plain numbers, for `bundle.json` and reports."""
        return {
            "images": self.images,
            "right": self.taken_for[truth],
            "asked": self.asked,
            "taken_for": {
                name: count for name, count in self.taken_for.most_common() if name != truth
            },
            "likeliest_right": self.likeliest,
        }


def judge_readings(
    images: Mapping[str, Sequence[Path]],
    modalities: Collection[str],
    read: Callable[[Path], ModalityReading],
) -> dict[str, Any]:
    """Read the modality of every image and count.

    Args:
        images: by what they are of.
        modalities: that can be read. About images of anything else it is right to ask.
        read: from a file to what was read.

    Returns:
        `modalities`: the counts of each; and over the images of modalities: `images`, `accuracy`
        (right among those decided), `asked` (share), `right` (share); null where there are none.
        `others`: how many images of anything else, and `others_asked`: share asked about.
    """
    tallies: dict[str, Tally] = {}
    for truth, paths in images.items():
        tally = tallies.setdefault(truth, Tally())
        for path in paths:
            reading = read(path)
            tally.images += 1
            tally.likeliest += next(iter(reading.candidates), None) == truth
            if reading.name is None:
                tally.asked += 1
            else:
                tally.taken_for[reading.name] += 1
    known = {truth: tally for truth, tally in tallies.items() if truth in modalities}
    count = sum(tally.images for tally in known.values())
    asked = sum(tally.asked for tally in known.values())
    right = sum(tally.taken_for[truth] for truth, tally in known.items())
    others = [tally for truth, tally in tallies.items() if truth not in modalities]
    strange = sum(tally.images for tally in others)
    return {
        "images": count,
        "accuracy": right / (count - asked) if count > asked else None,
        "right": right / count if count else None,
        "asked": asked / count if count else None,
        "others": strange,
        "others_asked": sum(tally.asked for tally in others) / strange if strange else None,
        "modalities": {truth: tally.as_json(truth) for truth, tally in tallies.items()},
    }
