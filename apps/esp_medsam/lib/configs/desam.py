"""DeSAM: a model for each modality of its bundle, and for those that `--conf models` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.conf import AppConf, desam_model_name, model_name, named_desam
from esp_medsam_app.server.desam_bundles import added_to_desam, served_desam
from esp_medsam_app.server.desam_task import AddedDeSamTask, DeSamInferTask, SharedDeSam
from esp_medsam_app.server.desam_train_task import DeSamTrainTask
from esp_medsam_app.weights.versions import open_versions


class DeSam(TaskConfig):
    """The tasks of the bundle that `--conf desam` names; none where there is no such bundle."""

    def init(
        self, name: str, model_dir: str, conf: dict[str, str], planner: Any, **kwargs: Any
    ) -> None:
        super().init(name, model_dir, conf, planner, **kwargs)
        self.options = AppConf.parse(conf)
        wanted = named_desam(self.options.models)
        bundle = served_desam(self.options.desam, Path(model_dir) / "desam", bool(wanted))
        self.segmenters: SharedDeSam | None = None
        if bundle is None:
            return
        other = next((c.segmenters for c in kwargs.get("beside", ())), None)
        known = other.bundle.modalities if other is not None else {}
        self.added = added_to_desam(wanted, bundle, {**known, **self._own_modalities(kwargs)})
        folder = self.options.versions or Path(model_dir) / "versions"
        self.versions = open_versions(folder, bundle, self.added)
        self.segmenters = SharedDeSam(
            bundle,
            beside=other,
            versions=self.versions,
            device=self.options.device,
            batch_size=self.options.batch_size,
            precision=self.options.precision,
            fast=self.options.fast,
        )
        if self.options.preload:
            self.segmenters.get()

    @staticmethod
    def _own_modalities(kwargs: dict[str, Any]) -> dict[str, Modality]:
        """Those that an admin put beside ESP-MedSAM's."""
        return {k: m for c in kwargs.get("beside", ()) for k, m in getattr(c, "added", {}).items()}

    def infer(self) -> dict[str, InferTask]:
        if self.segmenters is None:
            return {}
        check = self.options.check_images
        tasks: dict[str, InferTask] = {
            desam_model_name(name): DeSamInferTask(
                modality, self.segmenters, check_images=check, check_units=check
            )
            for name, modality in sorted(self.segmenters.bundle.modalities.items())
        }
        for name, modality in self.added.items():
            task = AddedDeSamTask(modality, self.segmenters, check_images=check, check_units=check)
            tasks[desam_model_name(name)] = task
        return tasks

    def trainer(self) -> dict[str, TrainTask]:
        if self.segmenters is None:
            return {}
        modalities = {**self.segmenters.bundle.modalities, **self.added}
        models = [f(name) for name in modalities for f in (model_name, desam_model_name)]
        return {
            desam_model_name(name): DeSamTrainTask(
                modality,
                self.versions,
                Path(self.model_dir) / "training_desam",
                models,
                device=self.options.device,
                pattern=self.options.patient_pattern,
                tracking=settings.MONAI_LABEL_TRACKING_ENABLED,
            )
            for name, modality in sorted(modalities.items())
        }
