"""Whether a candidate takes the place of the version that serves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple


class Decision(NamedTuple):
    """Publish or keep back, and why.

    Attributes:
        publish: whether the candidate is to serve.
        reason: a sentence for people.
        gain: mean over the held-out cases of Dice after minus before; none without such cases.
    """

    publish: bool
    reason: str
    gain: float | None = None


def decide_promotion(
    before: Mapping[str, float], after: Mapping[str, float], margin: float = 0.0
) -> Decision:
    """Compare a candidate with the serving version on the same held-out cases, case by case.

    Args:
        before: Dice of the serving version by case; 0 where nothing serves yet.
        after: Dice of the candidate on the same cases.
        margin: by how much Dice has to rise in the mean. At 0 it has to rise at all.

    Raises:
        ValueError: other cases before than after, or a Dice that is no number.
    """
    if before.keys() != after.keys():
        raise ValueError("before and after are not of the same cases")
    if not all(math.isfinite(value) for value in (*before.values(), *after.values())):
        raise ValueError("a Dice that is no number")
    if not before:
        return Decision(
            False,
            "there is no held-out case to compare on: submit labels of another patient",
        )
    gains = {case: after[case] - before[case] for case in before}
    gain = fmean(gains.values())
    better = sum(value > 0 for value in gains.values())
    told = (
        f"mean Dice {fmean(before.values()):.3f} before, {fmean(after.values()):.3f} after on "
        f"{len(gains)} held-out case{'s' if len(gains) > 1 else ''}, {better} of them better"
    )
    if gain > margin:
        return Decision(True, told, gain)
    wanted = f"a rise of more than {margin:g} is asked for" if margin > 0 else "no rise"
    return Decision(False, f"{told}: {wanted}", gain)
