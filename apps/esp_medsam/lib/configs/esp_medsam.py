"""ESP-MedSAM: a model for each modality of the bundle, and one for all; on one backbone."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.train import TrainTask

from esp_medsam_app.server.auto_task import AutoInferTask
from esp_medsam_app.server.conf import AUTO_MODEL, AppConf, model_name, model_names
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.server.shared_segmenter import SharedSegmenter
from esp_medsam_app.weights import load_bundle


class EspMedSam(TaskConfig):
    """The tasks of the bundle that `--conf bundle` names."""

    def init(
        self, name: str, model_dir: str, conf: dict[str, str], planner: Any, **kwargs: Any
    ) -> None:
        super().init(name, model_dir, conf, planner, **kwargs)
        options = AppConf.parse(conf)
        self.segmenters = SharedSegmenter(
            load_bundle(options.bundle), device=options.device, batch_size=options.batch_size
        )
        if options.preload:
            self.segmenters.get()

    def infer(self) -> dict[str, InferTask]:
        modalities = self.segmenters.bundle.modalities
        tasks: dict[str, InferTask] = {
            model_name(name): EspMedSamInferTask(modality, self.segmenters)
            for name, modality in modalities.items()
        }
        tasks[AUTO_MODEL] = AutoInferTask(modalities.values(), self.segmenters)
        return {name: tasks[name] for name in model_names(modalities)}

    def trainer(self) -> TrainTask | None:
        return None
