"""The loop that every training runs: steps, averages, checkpoints, curves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.training.recipe import Optimisation
from esp_medsam_app.training.sources import Batch, BatchSource
from esp_medsam_app.training.surroundings import Surroundings

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0
# nnU-Net's, which DeSAM took over
POLYNOMIAL = 0.9


@dataclass(frozen=True)
class Phase:
    """A part of a run that trains one set of parameters.

    Attributes:
        name: for checkpoints, curves and people.
        steps: optimiser steps.
        groups: of AdamW; each parameter's `lr` is the highest of the schedule.
        source: of the batches.
        losses: of a batch; `total` is minimised, the others are curves.
    """

    name: str
    steps: int
    groups: list[dict[str, Any]]
    source: BatchSource
    losses: Callable[[Batch], Mapping[str, Tensor]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the phase trains."""
        return [parameter for group in self.groups for parameter in group["params"]]


class Checkpoint:
    """What a run has reached: trained weights, their average, optimiser, phase and step.

    Args:
        path: of the file.
        network: whose weights it holds.
        trained: which of its state's names change during the run; only these are kept.
    """

    def __init__(self, path: Path, network: nn.Module, trained: Callable[[str], bool]) -> None:
        self.path = path
        self.network = network
        self.trained = trained
        self.state: dict[str, Any] = {"finished": []}
        if path.exists():
            try:
                self.state = torch.load(path, map_location="cpu", weights_only=True)
                network.load_state_dict(self.state["network"], strict=False)
            except Exception as error:
                raise InputError(
                    f"the checkpoint cannot be read ({str(error).splitlines()[0]})",
                    path=path,
                    remedy="Remove it and start the run again, or give another --work",
                ) from error

    def finished(self, phase: str) -> bool:
        """Whether the phase was run to its end."""
        return phase in self.state["finished"]

    def step(self, phase: str) -> int:
        """Steps of the phase that are done."""
        return int(self.state["step"]) if self.state.get("phase") == phase else 0

    def save(self, **progress: Any) -> None:
        """Write the network as it is now, and how far the run is."""
        weights = {k: v for k, v in self.network.state_dict().items() if self.trained(k)}
        self.state = {"finished": self.state["finished"], "network": weights} | progress
        with written_whole(self.path) as partial:
            torch.save(self.state, partial)

    def finish(self, phase: str) -> None:
        """The phase is over; the network holds what it gave."""
        self.state["finished"] = [*self.state["finished"], phase]
        self.save()


class _Average:
    """Moving average of weights; a decay of 0 gives the weights themselves."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        # early weights are far off: a young average forgets faster
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        get_ema_multi_avg_fn(decay)(self.values, [p.detach() for p in self.parameters], None)

    @torch.no_grad()
    def apply(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)


def optimise(
    phase: Phase, recipe: Optimisation, checkpoint: Checkpoint, place: Surroundings
) -> None:
    """Run a phase to its end, from where its checkpoint stopped; nothing if that is its end.

    It ends early at the time that `place` names.

    Afterwards the trained weights are the moving average, and no parameter needs a gradient.

    Raises:
        InputError: the loss is no number any more.
    """
    if checkpoint.finished(phase.name):
        return
    checkpoint.network.requires_grad_(False)
    parameters = phase.parameters
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(phase.groups, weight_decay=recipe.weight_decay)
    highest = [group["lr"] for group in optimiser.param_groups]
    average = _Average(parameters, recipe.average)
    done = checkpoint.step(phase.name)
    if done:
        optimiser.load_state_dict(checkpoint.state["optimiser"])
        average.values = [v.to(p.device) for v, p in zip(
            checkpoint.state["average"], parameters, strict=True
        )]  # fmt: skip
    per_step = recipe.accumulate
    own = [
        number
        for step in range(done, phase.steps)
        for number in place.processes.share(range(step * per_step, (step + 1) * per_step))
    ]
    batches = iter(phase.source.batches(own))
    running: dict[str, float] = {}
    saved = time.monotonic()
    for step in range(done, phase.steps):
        if place.ends_at is not None and time.monotonic() > place.ends_at:
            break
        for group, rate in zip(optimiser.param_groups, highest, strict=True):
            group["lr"] = rate * rate_of(step, phase.steps, recipe)
        optimiser.zero_grad(set_to_none=True)
        for _ in range(per_step // place.processes.count):
            batch = next(batches)
            losses = phase.losses(batch)
            (losses["total"] / per_step).backward()
            _note(running, batch.modality, losses)
        place.processes.sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        average.update(step)
        if not math.isfinite(running["total"]):
            raise InputError(
                f"the loss is no number after {step + 1} steps of phase {phase.name}",
                remedy="Lower the learning rates of the recipe",
            )
        if not place.processes.first:
            continue
        place.report(phase.name, step + 1, phase.steps, running)
        if place.curves is not None:
            for name, value in running.items():
                place.curves.add_scalar(f"{phase.name}/{name}", value, step + 1)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoint.save(
                phase=phase.name,
                step=step + 1,
                optimiser=optimiser.state_dict(),
                average=average.values,
            )
            saved = time.monotonic()
    average.apply()
    checkpoint.network.requires_grad_(False)
    if place.processes.first:
        checkpoint.finish(phase.name)
    place.processes.wait()


def rate_of(step: int, steps: int, recipe: Optimisation) -> float:
    """The learning rate of a step relative to the highest: warm-up, then the schedule."""
    warm = min(recipe.warm_up, max(1, steps // 10))
    if step < warm:
        return (step + 1) / warm
    past = (step - warm) / max(1, steps - warm)
    if recipe.schedule == "exponential":
        return recipe.exponential_end**past
    if recipe.schedule == "polynomial":
        return (1 - past) ** POLYNOMIAL
    return 0.5 * (1 + math.cos(math.pi * past))


def _note(running: dict[str, float], modality: str, losses: Mapping[str, Tensor]) -> None:
    """Running means, of all modalities and of each."""
    for name, tensor in losses.items():
        value = float(tensor.detach())
        for key in (name, f"{name}/{modality}"):
            old = running.get(key, value)
            # a sum keeps what is no number
            running[key] = 0.98 * old + 0.02 * value if math.isfinite(value) else value
