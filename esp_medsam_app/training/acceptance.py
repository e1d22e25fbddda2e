"""Whether new weights of a modality replace the old ones: a rule over sites, fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# No site may lose more Dice than this.
LARGEST_LOSS = 0.02


@dataclass(frozen=True)
class Verdict:
    """A comparison of new weights with the old ones on the same validation cases.

    Attributes:
        gain: mean over sites of the mean change of Dice.
        error: standard error of `gain`, of paired differences of cases.
        worst: the smallest mean change of a site.
    """

    gain: float
    error: float
    worst: float

    @property
    def better(self) -> bool:
        """The gain exceeds its standard error, and no site loses more than `LARGEST_LOSS`."""
        return self.gain > self.error and self.worst >= -LARGEST_LOSS


def compare(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> Verdict:
    """Compare Dice of cases, by site and name.

    Args:
        before: of the old weights.
        after: of the new weights, for the same sites and cases.

    Raises:
        KeyError: a site or case of `before` is missing in `after`.
    """
    means, errors = [], []
    for site, cases in before.items():
        changes = np.array([after[site][name] - value for name, value in cases.items()])
        means.append(float(changes.mean()))
        errors.append(
            float(changes.std(ddof=1)) / math.sqrt(len(changes)) if len(changes) > 1 else 0
        )
    error = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    return Verdict(float(np.mean(means)), error, min(means))
