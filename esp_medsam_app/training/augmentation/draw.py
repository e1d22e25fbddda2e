"""Random numbers of a batch, drawn on the CPU so that every device gets the same."""

from __future__ import annotations

import torch
from torch import Tensor


class Draw:
    """Random numbers for the images of a batch.

    Args:
        seed: same seed, same numbers.
        device: where the numbers are used.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device = device

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        """Uniform numbers `[count, 1, 1, 1]`."""
        numbers = torch.rand(count, generator=self.generator) * (high - low) + low
        return numbers.view(-1, 1, 1, 1).to(self.device)

    def floats(self, count: int, low: float, high: float) -> list[float]:
        """Uniform numbers for Python."""
        numbers: list[float] = (
            torch.rand(count, generator=self.generator) * (high - low) + low
        ).tolist()
        return numbers

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers of mean 0 and deviation 1."""
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def rows(self, count: int, probability: float) -> Tensor:
        """Indices of the images that a change with this probability applies to."""
        chosen = torch.rand(count, generator=self.generator) < probability
        return torch.nonzero(chosen)[:, 0].to(self.device)
