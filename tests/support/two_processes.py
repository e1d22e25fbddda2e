"""A training task that leaves behind what each of its processes has learned, or fails in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monailabel.tasks.train.basic_train import Context

from esp_medsam_app.server.train_task import EspMedSamTrainTask


class ObservedTask(EspMedSamTrainTask):
    """Its processes find this class by name.

    Attributes:
        seen: folder for `<rank>.pt`: weights, steps taken and the last learning rate.
        fails: the process that runs out of memory in its first step, if any.
    """

    seen: Path
    fails: int | None = None

    def finalize(self, context: Context) -> None:
        super().finalize(context)
        rank = context.local_rank

        def leave(engine: Any) -> None:
            torch.save(
                {
                    "weights": context.network.module.state_dict(),
                    "steps": engine.state.iteration,
                    "rate": context.optimizer.param_groups[0]["lr"],
                },
                self.seen / f"{rank}.pt",
            )

        def fail(_: Any) -> None:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

        context.trainer.add_event_handler(Events.COMPLETED, leave)
        if rank == self.fails:
            context.trainer.add_event_handler(Events.ITERATION_STARTED, fail)
