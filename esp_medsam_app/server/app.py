"""The MONAI Label app: all models of a bundle on one backbone, with clear errors."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fastapi import HTTPException
from monailabel.config import Settings, settings
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.utils.others.generic import remove_file
from monailabel.utils.sessions import Sessions

from esp_medsam_app import __version__
from esp_medsam_app.errors import EspMedSamError, InputError, UnknownNameError
from esp_medsam_app.server.batch import BatchInfer
from esp_medsam_app.server.conf import AppConf, select_models
from esp_medsam_app.server.http_errors import as_http_error
from esp_medsam_app.server.sessions import CheckedSessions
from esp_medsam_app.server.sources import ImageSource, find_source
from esp_medsam_app.server.strategies import RandomImage

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

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

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
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

    def init_infers(self) -> dict[str, InferTask]:
        tasks: dict[str, InferTask] = {}
        for name, family in self.families.items():
            config = family()
            config.init(name, str(Path(self.app_dir) / "model"), self.conf, None)
            tasks.update(config.infer())
        chosen = select_models(AppConf.parse(self.conf).models, tasks)
        logger.info("Models: %s", ", ".join(chosen))
        return {name: tasks[name] for name in chosen}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"random": RandomImage()}

    def init_batch_infer(self) -> BatchInferTask:
        return BatchInfer()

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        try:
            return LocalDatastore(
                self.studies,
                extensions=_patterns(),
                auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            )
        except ValueError as error:
            raise InputError(
                "datastore_v2.json is damaged",
                path=self.studies,
                remedy="Move it away; the server then makes a new one from the files there are",
            ) from error
        except OSError as error:
            raise InputError(
                f"the studies cannot be used ({error.strerror or error})",
                path=self.studies,
                remedy="The server needs a folder that it may write to",
            ) from error

    def _load_sessions(self, load: bool = False) -> Sessions | None:
        if not load:
            return None
        return CheckedSessions(
            settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY
        )

    def info(self) -> dict[str, Any]:
        """What viewers ask for on connecting; `labels` of all models in OHIF's order, by name."""
        info = super().info()
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
            result = super().infer(
                {**request, "image": str(source.path), "save_label": False}, datastore
            )
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
        return dict(super().next_sample(request))

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
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        raise InputError(f"params.label_tag: {tag!r} cannot be a label's tag")
    return tag


def _save(datastore: Datastore, source: ImageSource, result: dict[str, Any], model: str) -> str:
    try:
        info = {"model": model, "params": result["params"]}
        return str(datastore.save_label(source.image_id, result["file"], result["tag"], info))
    except Exception:
        remove_file(result["file"])
        raise
