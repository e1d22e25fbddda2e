"""Curves of a training in MLflow.

MONAI Label's own handlers end the training where the tracking server cannot be reached, write to a
folder, which MLflow has given up, and open a run for every validation.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

from monai.utils import path_to_sqlite_uri, path_to_uri
from monailabel.config import settings

from esp_medsam_app.server.train_options import TrainOptions

# MLflow's own defaults make a training wait for minutes on a server that is not there.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
# How long a training waits for the run to be there, seconds: a new database takes some.
_START_SECONDS = 60.0

logger = logging.getLogger(__name__)


class Tracking:
    """One run in MLflow. What goes wrong with it is a line in the log: no training is lost by it.

    It travels to other processes, which may add to the run.

    Args:
        uri: of the tracking server or database.
        experiment: name of the experiment, which is made if it is not there.
        name: of the run.
        artifacts: where a new experiment's files would go.
    """

    def __init__(self, uri: str, experiment: str, name: str, artifacts: Path | None = None) -> None:
        self.uri = uri
        self.experiment = experiment
        self.name = name
        self.artifacts = artifacts
        self.run: str | None = None
        self.lost = False

    @classmethod
    def wanted(cls, options: TrainOptions, model: str, name: str, folder: Path) -> Tracking | None:
        """As a request asks for it, or MONAI Label's and MLflow's settings; none if it does not.

        Without a server it is the database `mlflow.db` in a folder.

        Args:
            options: of the request.
            model: name of the experiment by default.
            name: of the run by default.
            folder: for the database.
        """
        if options.tracking != "mlflow":
            return None
        uri = (
            options.tracking_uri
            or settings.MONAI_LABEL_TRACKING_URI
            or os.environ.get("MLFLOW_TRACKING_URI")
        )
        return cls(
            uri or path_to_sqlite_uri(folder / "mlflow.db"),
            options.tracking_experiment_name or model,
            options.tracking_run_name or name,
            None if uri else folder / "mlflow",
        )

    def begin(self, params: Mapping[str, Any]) -> Callable[[], None]:
        """Open the run in the background: importing MLflow alone takes seconds.

        Args:
            params: what the training is asked for.

        Returns:
            Waits until the run is there, or has failed.
        """

        def open_run() -> None:
            self._tried("the run cannot be opened", lambda: self._open(params))

        thread = Thread(target=open_run, name="tracking", daemon=True)
        thread.start()

        def wait() -> None:
            thread.join(_START_SECONDS)
            if thread.is_alive():
                self._lose("the run cannot be opened", f"no answer in {_START_SECONDS:.0f} s")

        return wait

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve.

        Args:
            number: of the epoch, from 1.
            values: by the curves' names.
        """
        self._tried("an epoch cannot be drawn", lambda: self._log(values, number))

    def end(self, status: str, values: Mapping[str, float], tags: Mapping[str, Any]) -> None:
        """Close the run.

        Args:
            status: MLflow's word for how it ended: `FINISHED`, `FAILED`.
            values: final figures.
            tags: what came of it, in words.
        """

        def close() -> None:
            self._log(values, 0)
            client = _client(self.uri)
            for key, value in tags.items():
                client.set_tag(self.run, key, value)
            client.set_terminated(self.run, status)

        self._tried("the run cannot be closed", close)

    def _open(self, params: Mapping[str, Any]) -> None:
        client = _client(self.uri)
        known = client.get_experiment_by_name(self.experiment)
        if known is None:
            place = None if self.artifacts is None else path_to_uri(self.artifacts)
            experiment = client.create_experiment(self.experiment, artifact_location=place)
        else:
            experiment = known.experiment_id
        run = client.create_run(experiment, run_name=self.name).info.run_id
        for key, value in params.items():
            client.log_param(run, key, value)
        self.run = run

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(k, v, now, step) for k, v in values.items() if math.isfinite(v)]
        _client(self.uri).log_batch(self.run, metrics=points)

    def _tried(self, problem: str, work: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            work()
        except Exception as error:  # whatever a server, a proxy or a database comes up with
            self._lose(problem, " ".join(str(error).split())[:300])

    def _lose(self, problem: str, reason: str) -> None:
        self.lost = True
        logger.warning(
            "MLflow at %s: %s (%s). The training goes on without; set tracking to None or "
            "tracking_uri to a server that answers",
            self.uri,
            problem,
            reason,
        )


@lru_cache
def _client(uri: str) -> Any:
    for key, value in _PATIENCE.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    # of a new database it tells each of its tables' histories
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)
