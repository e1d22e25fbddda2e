"""What admins and viewers see of a training while it runs."""

from __future__ import annotations

import datetime
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monailabel.tasks.train.handler import prepare_stats

from esp_medsam_app.data.whole_files import written_whole

OnEpoch = Callable[[int, Mapping[str, float]], None]

logger = logging.getLogger(__name__)


class TrainProgress:
    """Writes the statistics that viewers read, and a line an epoch for the log.

    MONAI Label's own writes a file while `/info/` reads it, never says that a training which
    stopped early is over, and publishes on its own.

    Args:
        file: of the statistics.
        started: Unix time.
        trainer: the engine.
        evaluator: of the held-out tiles; none where nothing is held out.
        on_epoch: called with an epoch's number and its figures: `loss`, `train_mean_dice`,
            `val_mean_dice`, the latter where something is held out.
    """

    def __init__(
        self,
        file: Path,
        started: float,
        trainer: SupervisedTrainer,
        evaluator: SupervisedEvaluator | None,
        on_epoch: OnEpoch = lambda number, figures: None,
    ) -> None:
        self.file = file
        self.started = started
        self.trainer = trainer
        self.evaluator = evaluator
        self.on_epoch = on_epoch
        self.losses: list[float] = []
        self.first_epoch = started

    def attach(self) -> None:
        """Follow the trainer; to be called after all that works at the end of an epoch."""
        self.trainer.add_event_handler(Events.STARTED, self._start)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        self.trainer.add_event_handler(Events.COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:
        self.first_epoch = time.time()
        del engine

    def _step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        self.losses.append(float(output[0]["loss"]))

    def _epoch(self, engine: Engine) -> None:
        done, wanted = engine.state.epoch, engine.state.max_epochs or engine.state.epoch
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        left = (time.time() - self.first_epoch) / done * (wanted - done)
        judged = ""
        if self.evaluator is not None:
            state: Any = self.evaluator.state
            judged = (
                f", held-out Dice {state.metrics[state.key_metric_name]:.4f}"
                f" (best {state.best_metric:.4f} in epoch {state.best_metric_epoch or done})"
            )
        logger.info(
            "Epoch %d of %d: loss %.4f%s; at most %s left", done, wanted, loss, judged, told(left)
        )
        self._write()
        figures = {"loss": loss, **_metrics(self.trainer), **_metrics(self.evaluator)}
        self.on_epoch(done, figures)

    def _end(self, engine: Engine) -> None:
        del engine
        self._write()

    def _write(self) -> None:
        stats = prepare_stats(self.started, self.trainer, self.evaluator)
        # viewers take a training with a `total_time` for one that is over: it is when it is judged
        stats.pop("total_time", None)
        stats["current_time"] = told(time.time() - self.started)
        write_stats(self.file, stats)


def _metrics(engine: Engine | None) -> dict[str, float]:
    metrics = {} if engine is None else engine.state.metrics
    return {name: float(value) for name, value in metrics.items() if isinstance(value, float)}


def write_stats(file: Path, stats: Mapping[str, Any]) -> None:
    """Replace the statistics that viewers read, as a whole."""
    best = stats.get("best_metric")
    # viewers divide by it and show its digits
    finite = float(best) if isinstance(best, float | int) and math.isfinite(best) else 0.0
    with written_whole(file) as partial:
        text = json.dumps({**stats, "best_metric": max(0.0, finite)}, indent=2)
        partial.write_text(text, encoding="utf-8")


def told(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))
