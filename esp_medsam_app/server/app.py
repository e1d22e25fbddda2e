"""The MONAI Label app: all models of a bundle on one backbone, with clear errors."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from fastapi import HTTPException
from monailabel.config import Settings, settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import remove_file
from monailabel.utils.sessions import Sessions

from esp_medsam_app import __version__
from esp_medsam_app.data.whole_files import sweep
from esp_medsam_app.errors import EspMedSamError, InputError, UnknownNameError
from esp_medsam_app.inference.modality_reader import AUTO
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.active_learning import ActiveLearning
from esp_medsam_app.server.audit import audit, open_audit
from esp_medsam_app.server.auto_task import AutoInferTask
from esp_medsam_app.server.batch import BatchInfer
from esp_medsam_app.server.children import end_with_server, tie_children
from esp_medsam_app.server.conf import AppConf, model_name, select_models
from esp_medsam_app.server.devices import DeviceLoads
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.server.killed_processes import explain_killed_processes
from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.server.log_lines import guard_logs
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.pacs.pointers import grid_of
from esp_medsam_app.server.pacs.routes import add_dicom_seg_route
from esp_medsam_app.server.pacs.series_cache import GIGABYTE
from esp_medsam_app.server.plain_server import unblock
from esp_medsam_app.server.reading import readers
from esp_medsam_app.server.scoring import BackgroundScoring, DiceScore, LabelScoring, VoxelSum
from esp_medsam_app.server.served import Served, note_served
from esp_medsam_app.server.sessions import CheckedSessions
from esp_medsam_app.server.sources import ImageSource, find_source
from esp_medsam_app.server.submitted_labels import SubmittedLabels
from esp_medsam_app.server.told_texts import TAG, quoted
from esp_medsam_app.server.uncertainty_scoring import UncertaintyScoring
from esp_medsam_app.server.version_routes import add_version_routes

# How many images that turn out to be no volumes are passed over in one request.
_TRIES = 20
_LEFT_SECONDS = 3600
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")

logger = logging.getLogger(__name__)


class EspMedSamApp(MONAILabelApp):
    """What every app of this project is; an app's `main.py` only names its families of models.

    Args:
        app_dir: the app's folder.
        studies: folder of images, or address of a DICOMweb server.
        conf: see `AppConf`.

    Raises:
        EspMedSamError: bad options, unknown models, no weights, studies that cannot be read.
    """

    families: ClassVar[Mapping[str, type[TaskConfig]]] = {}
    _label_scoring: BackgroundScoring | None = None

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        end_with_server()
        guard_logs()
        # MONAI Label downloads itkimage2segimage where it finds none; ours lies beside Python.
        tools = str(Path(sys.executable).parent)
        if tools not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join([tools, os.environ.get("PATH", "")])
        try:
            level = AppConf.parse(conf).log_level
            if level is not None:
                logging.getLogger("esp_medsam_app").setLevel(level)
            super().__init__(
                app_dir=app_dir,
                studies=studies,
                conf=dict(conf or {}),
                name="ESP-MedSAM",
                description="Prompt-free segmentation, all modalities on one backbone",
                version=__version__,
            )
        except EspMedSamError as error:
            logger.error("The app cannot start: %s", error)
            raise

    @cached_property
    def _configs(self) -> list[TaskConfig]:
        """The families of models, with their weights found and their options read."""
        configs: list[TaskConfig] = []
        for name, family in self.families.items():
            config = family()
            model = str(Path(self.app_dir) / "model")
            config.init(name, model, self.conf, None, beside=tuple(configs))
            configs.append(config)
        return configs

    def init_infers(self) -> dict[str, InferTask]:
        tasks = {name: task for config in self._configs for name, task in config.infer().items()}
        chosen = select_models(AppConf.parse(self.conf).models, tasks)
        logger.info("Models: %s", ", ".join(chosen))
        return {name: tasks[name] for name in chosen}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Those of the models that are served."""
        tasks = {
            name: task
            for config in self._configs
            for name, task in (config.trainer() or {}).items()
        }
        return {name: task for name, task in tasks.items() if name in self._infers}

    @cached_property
    def active_learning(self) -> ActiveLearning:
        """What chooses the next image, and scores images for it."""
        folder = Path(self.app_dir) / "model" / "active_learning"
        return ActiveLearning(folder, self.studies, self._infers, self.datastore)

    def init_strategies(self) -> dict[str, Strategy]:
        return self.active_learning.strategies()

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        methods: dict[str, LabelScoring] = {"dice": DiceScore(), "sum": VoxelSum()}
        self._label_scoring = BackgroundScoring(methods, self.datastore)
        return {**methods, "uncertainty": UncertaintyScoring(lambda: self.active_learning.scores)}

    def async_scoring(self, method: str | None, params: Mapping[str, Any] | None = None) -> Any:
        """Start a scoring method as MONAI Label does; or, without one, score what has changed.

        MONAI Label asks for the latter on starting, with each next sample and after training, and
        would start a process for each method every time.
        """
        if method is not None:
            return super().async_scoring(method, params)
        if self._label_scoring is not None and self._server_mode:
            self._label_scoring.wake()
        return {}

    def init_batch_infer(self) -> BatchInferTask:
        return BatchInfer(self._is_up_to_date)

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            return self.init_remote_datastore()
        try:
            return SafeDatastore(
                self.studies,
                SubmittedLabels(self._modalities, self._read_of, self._numberings),
                extensions=_patterns(),
                auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            )
        except OSError as error:
            raise InputError(
                f"the studies cannot be used ({error.strerror or error})",
                path=self.studies,
                remedy="The server needs a folder that it may write to",
            ) from error

    def _init_dicomweb_datastore(self) -> Datastore:
        largest = AppConf.parse(self.conf).pacs_cache_gb * GIGABYTE
        return PacsDatastore.from_settings(
            self.studies.strip().rstrip("/"),
            SubmittedLabels(self._modalities, self._read_of, self._numberings, grid_of),
            self._dicom_modalities,
            largest,
        )

    def _load_sessions(self, load: bool = False) -> Sessions | None:
        if not load:
            return None
        return CheckedSessions(
            settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY
        )

    @cached_property
    def _devices(self) -> DeviceLoads:
        return DeviceLoads.of_server(AppConf.parse(self.conf).device)

    def on_init_complete(self) -> None:
        """The server is about to answer: it gets our routes beside MONAI Label's."""
        tie_children()
        open_audit(Path(self.app_dir) / "logs")
        self._note_served()
        # trainings may write right now, but none for so long
        sweep(Path(self.app_dir) / "model", _LEFT_SECONDS)
        # it reads its settings when it is imported
        from monailabel.app import app as endpoints

        add_version_routes(endpoints)
        explain_killed_processes()
        add_dicom_seg_route(endpoints)
        unblock(endpoints)
        if isinstance(datastore := self.datastore(), PacsDatastore):
            datastore.start()
        readers().warm()
        super().on_init_complete()
        if AppConf.parse(self.conf).background_scores:
            self.active_learning.background.start()

    def _note_served(self) -> None:
        """Where a backup finds the labels and what was trained."""
        app, datastore = Path(self.app_dir), self.datastore()
        if not isinstance(datastore, SafeDatastore):
            return
        versions = AppConf.parse(self.conf).versions or app / "model" / "versions"
        try:
            note_served(app, Served(str(self.studies), datastore.folder, versions))
        except OSError as error:
            logger.warning("What is served is not noted, and backups need --studies: %s", error)

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """A viewer has submitted a label."""
        super().on_save_label(image_id, label_id)
        self.active_learning.submitted(image_id)

    def info(self) -> dict[str, Any]:
        """What viewers ask for on connecting; `labels` of all models in OHIF's order, by name.

        Slicer and OHIF show the first of the trainings: the latest.
        """
        info = super().info()
        trained = sorted(
            info["train_stats"].items(), key=lambda item: item[1].get("start_ts", 0), reverse=True
        )
        info["train_stats"] = dict(trained)
        info["labels"] = sorted({name for task in self._infers.values() for name in task.labels})
        return dict(info)

    def infer(
        self, request: Mapping[str, Any], datastore: Datastore | None = None
    ) -> dict[str, Any]:
        """Segment an image.

        Args:
            request: `model`; `image`, see `find_source`; `save_label` and `label_tag` to keep the
                result in the datastore too; and the task's options, see `InferOptions`.
            datastore: the app's own by default.

        Returns:
            `file` (the label map, which the caller removes), `label` (its id in the datastore, or
            the file), `tag`, `params` (the task's JSON).

        Raises:
            HTTPException: 404 unknown model, image or session; 422 bad image or option; 503 no
                memory or no weights; 500 anything unexpected, without details.
        """
        source = None
        try:
            self._check_model(request.get("model"))
            tag = _checked_tag(request.get("label_tag"))
            datastore = datastore or self.datastore()
            source = find_source(request.get("image"), datastore, self.sessions())
            with (
                self.active_learning.background.request(),
                self._devices.chosen(request.get("device")) as device,
            ):
                given = {**request, "image": str(source.path), "save_label": False}
                if device is not None:
                    given["device"] = device
                result = super().infer(given, datastore)
            if source.image_id and isinstance(self._infers[request["model"]], AutoInferTask):
                # the labels that are submitted for it later are of that modality
                self.active_learning.was_read(source.image_id, result["params"]["modality"])
            if source.image_id and not request.get("save_label"):
                # a batch is nobody's choice of a model
                self.active_learning.was_used(source.image_id, request["model"])
            result["tag"] = tag
            if request.get("save_label") and source.image_id:
                result["label"] = _save(datastore, source, result, request["model"])
            return dict(result)
        except HTTPException:
            raise
        except Exception as error:
            if source is not None and source.is_upload:
                # MONAI Label removes it after an answer, but not after an error
                remove_file(str(source.path))
            raise as_http_error(error, source) from error

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train a model on the submitted labels; see its train task.

        In a process of its own, as MONAI Label starts it, what went wrong is the last line of the
        log, which the training's status shows.

        Raises:
            HTTPException: in the server: 404 unknown model, 422 bad option or no label.
            SystemExit: in a process of its own, after an error.
        """
        try:
            model = request.get("model")
            if model not in self._trainers:
                raise UnknownNameError(
                    f"there is no model {model!r} to train",
                    remedy=f"Available: {', '.join(self._trainers)}",
                )
            return dict(super().train(request))
        except EspMedSamError as error:
            if self._server_mode:
                raise as_http_error(error) from error
            logger.error("The training failed: %s", error)
            raise SystemExit(1) from error

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The image to show next: `id`, `path` and more; `{}` if all have labels.

        Raises:
            HTTPException: 404 unknown strategy.
        """
        strategy = request.get("strategy") or "random"
        if strategy not in self._strategies:
            raise as_http_error(
                UnknownNameError(
                    f"there is no strategy {strategy!r}",
                    remedy=f"Available: {', '.join(self._strategies)}",
                )
            )
        for _ in range(_TRIES - 1):
            try:
                return dict(super().next_sample(request))
            except HTTPException as error:
                if error.status_code != 422:
                    raise
                # its DICOM is no volume: the datastore does not offer it again
                logger.warning("Not the next sample: %s", error.detail)
        return dict(super().next_sample(request))

    def _modalities(self) -> dict[str, Modality]:
        """The modality of each model, of those that are only trained yet too.

        The model that reads the modality from the image stands for those that it chooses from.
        """
        # the datastore is there before them
        tasks = {**getattr(self, "_trainers", {}), **getattr(self, "_infers", {})}
        modalities = {name: getattr(task, "modality", None) for name, task in tasks.items()}
        for task in getattr(self, "_infers", {}).values():
            if isinstance(task, AutoInferTask):
                modalities |= {model_name(name): m for name, m in task.modalities.items()}
        return {
            name: modality
            for name, modality in modalities.items()
            if isinstance(modality, Modality) and modality.name != AUTO
        }

    def _numberings(self) -> dict[str, dict[str, int]]:
        """The labels of the model that is of no single modality."""
        return {
            name: dict(task.modality.labels)
            for name, task in self._infers.items()
            if isinstance(task, AutoInferTask)
        }

    def _read_of(self, image: Path) -> str | None:
        """The modality that an image of the datastore's folder was read to be of."""
        datastore = self.datastore()
        assert isinstance(datastore, SafeDatastore)
        return self.active_learning.modality_of(datastore._to_id(image.name)[0])

    def _dicom_modalities(self) -> list[str]:
        """DICOM modalities (0008,0060) of the images that the models served are meant for."""
        served = [
            modality
            for task in getattr(self, "_infers", {}).values()
            for modality in (
                *getattr(task, "modalities", {}).values(),
                getattr(task, "modality", None),
            )
            if isinstance(modality, Modality)
        ]
        return sorted({name for modality in served for name in modality.dicom_modalities})

    def _is_up_to_date(self, model: str, answer: Mapping[str, Any]) -> bool:
        """Whether a model's answer came from the weights that serve now."""
        task, version = self._infers.get(model), answer.get("version")
        if not isinstance(task, EspMedSamInferTask) or not isinstance(version, Mapping):
            return False
        return task.serving(str(version.get("modality"))) == version.get("number")

    def _check_model(self, model: Any) -> None:
        if model not in self._infers:
            raise UnknownNameError(
                f"there is no model {model!r}", remedy=f"Available: {', '.join(self._infers)}"
            )


def _patterns() -> list[str]:
    """File names that are images: ours, unless the user has set MONAI Label's own variable."""
    chosen = settings.MONAI_LABEL_DATASTORE_FILE_EXT
    if chosen != Settings.model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default:
        return list(chosen)
    return [f"*{variant}" for suffix in IMAGE_SUFFIXES for variant in (suffix, suffix.upper())]


def _checked_tag(tag: Any) -> str:
    """The tag under which a label is kept; the datastore takes it for a folder's name."""
    if tag is None or tag == "":
        return str(DefaultLabelTag.ORIGINAL.value)
    if not isinstance(tag, str) or not TAG.fullmatch(tag):
        raise InputError(f"params.label_tag: {quoted(tag)} cannot be a label's tag")
    return tag


def _save(datastore: Datastore, source: ImageSource, result: dict[str, Any], model: str) -> str:
    try:
        info = {"model": model, "params": result["params"]}
        safe = isinstance(datastore, SafeDatastore)
        save = datastore.save_prediction if safe else datastore.save_label
        label = str(save(source.image_id, result["file"], result["tag"], info))
        audit("label.predict", image=source.image_id, tag=result["tag"], label=label, model=model)
        return label
    except Exception:
        remove_file(result["file"])
        raise
