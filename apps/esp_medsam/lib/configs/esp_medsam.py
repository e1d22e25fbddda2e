"""ESP-MedSAM: a model for each modality of the bundle, and one for all; on one backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from esp_medsam_app.server.auto_task import AutoInferTask
from esp_medsam_app.server.conf import (
    AUTO_MODEL,
    AppConf,
    added_modalities,
    model_name,
    model_names,
)
from esp_medsam_app.server.infer_task import AddedInferTask, EspMedSamInferTask
from esp_medsam_app.server.shared_segmenter import SharedSegmenter
from esp_medsam_app.server.train_task import EspMedSamTrainTask
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.profiles import chosen_bundle
from esp_medsam_app.weights.versions import open_versions


class EspMedSam(TaskConfig):
    """The tasks of the bundle that `--conf bundle` names, and of `--conf modalities`."""

    def init(
        self, name: str, model_dir: str, conf: dict[str, str], planner: Any, **kwargs: Any
    ) -> None:
        super().init(name, model_dir, conf, planner, **kwargs)
        self.options = AppConf.parse(conf)
        bundle = load_bundle(chosen_bundle(self.options.bundle, self.options.profile))
        self.added = added_modalities(self.options.modalities, bundle.modalities)
        folder = self.options.versions or Path(model_dir) / "versions"
        self.versions = open_versions(folder, bundle, self.added)
        self.segmenters = SharedSegmenter(
            bundle,
            versions=self.versions,
            device=self.options.device,
            batch_size=self.options.batch_size,
            precision=self.options.precision,
            quality=self.options.quality,
            fast=self.options.fast,
            runtime=self.options.runtime,
            embeddings_mb=self.options.embeddings_mb,
        )
        if self.options.preload:
            self.segmenters.get()

    def infer(self) -> dict[str, InferTask]:
        modalities = self.segmenters.bundle.modalities
        check = self.options.check_images
        tasks: dict[str, InferTask] = {
            model_name(name): EspMedSamInferTask(
                modality, self.segmenters, check_images=check, check_units=check
            )
            for name, modality in modalities.items()
        }
        for name, modality in self.added.items():
            tasks[model_name(name)] = AddedInferTask(
                modality, self.segmenters, check_images=False, check_units=check
            )
        tasks[AUTO_MODEL] = AutoInferTask(modalities.values(), self.segmenters, check_units=check)
        return {name: tasks[name] for name in model_names(modalities, self.added)}

    def trainer(self) -> dict[str, TrainTask]:
        modalities = {**self.segmenters.bundle.modalities, **self.added}
        models = [model_name(name) for name in modalities]
        return {
            model_name(name): EspMedSamTrainTask(
                modality,
                self.versions,
                Path(self.model_dir) / "training",
                models,
                device=self.options.device,
                pattern=self.options.patient_pattern,
                tracking=settings.MONAI_LABEL_TRACKING_ENABLED,
            )
            for name, modality in sorted(modalities.items())
        }
