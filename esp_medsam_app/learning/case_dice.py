"""Dice of whole cases, gathered from their tiles while an engine runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from torch import Tensor

Output = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[int]]


class CaseDice(Metric):
    """Mean over cases of the mean Dice of the labels that a case shows or is given.

    A case whose tiles show nothing and are given nothing counts as 1: silence was right. Every
    process sees all tiles, so nothing is reduced between them.

    Args:
        labels: how many; values 1 to `labels`.
        output_transform: of the engine's output, to masks (bool `[labels, S, S]`), label maps
            `[S, S]` and numbers of cases.
    """

    def __init__(self, labels: int, output_transform: Callable[[Any], Output]) -> None:
        self._labels = labels
        super().__init__(output_transform=output_transform, skip_unrolling=True)

    def reset(self) -> None:
        """Forget all tiles."""
        self._sums: dict[int, Tensor] = {}

    def update(self, output: Output) -> None:
        """Add some tiles."""
        values = torch.arange(1, self._labels + 1)[:, None, None]
        for mask, label, case in zip(*output, strict=True):
            truth = label.cpu().unsqueeze(0) == values
            found = mask.cpu().bool()
            counts = torch.stack(
                [(truth & found).sum((1, 2)), truth.sum((1, 2)) + found.sum((1, 2))]
            )
            self._sums[case] = self._sums.get(case, torch.zeros_like(counts)) + counts

    def compute(self) -> float:
        """The mean Dice, 0 to 1; 0 without a tile."""
        scores = []
        for both, sizes in self._sums.values():
            shown = sizes > 0
            dice = (2 * both[shown] / sizes[shown]).float()
            scores.append(float(dice.mean()) if shown.any() else 1.0)
        return sum(scores) / len(scores) if scores else 0.0
