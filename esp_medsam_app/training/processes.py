"""Several processes on one training: what torchrun starts.

Batches of a step are shared out, gradients are summed. A step gives the same as in one process, up
to the order of summation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among all; one of one without torchrun."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and tells of progress."""
        return self.rank == 0

    def share(self, numbers: Sequence[int]) -> Sequence[int]:
        """This process's part of the batches of a step."""
        return numbers[self.rank :: self.count]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; those that none has stay unset.

        A modality's own parts have a gradient only where one of its batches is: left unset, the
        optimiser leaves them alone, as in one process.
        """
        if self.count == 1:
            return
        has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32)
        has = has.to(parameters[0].device)
        dist.all_reduce(has)
        for parameter, some in zip(parameters, has.tolist(), strict=True):
            if some:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of each value over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values = values / self.count
        return values


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this training, as torchrun's environment tells."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> str:
    """`cuda` as this process's GPU under torchrun, else as it is."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name == "cuda" and rank is not None else name
