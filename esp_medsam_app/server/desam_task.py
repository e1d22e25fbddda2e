"""DeSAM's inference tasks, and its segmenter in memory beside ESP-MedSAM's."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.desam_segmenter import DeSamSegmenter
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.conf import desam_model_name
from esp_medsam_app.server.infer_task import AddedInferTask, EspMedSamInferTask
from esp_medsam_app.server.shared_segmenter import Loaded, SharedSegmenter
from esp_medsam_app.weights.desam_bundle import DeSamBundle
from esp_medsam_app.weights.desam_prompts import MaskRules, PromptMode
from esp_medsam_app.weights.versions import Stamp, VersionStore

logger = logging.getLogger(__name__)


class DeSamOptions(BaseModel):
    """The keys of a request's `params` that say how DeSAM is prompted; others are ignored.

    Attributes:
        prompt: `whole_box` or `grid_points`; as the weights were trained by default.
        points_per_side, iou_threshold, nms_threshold, most, smallest_region: see `MaskRules`; the
            bundle's by default.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    prompt: PromptMode | None = None
    points_per_side: int | None = None
    iou_threshold: float | None = None
    nms_threshold: float | None = None
    most: int | None = None
    smallest_region: int | None = None

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> DeSamOptions:
        """Read the options of a request.

        Raises:
            InputError: a known key with a value of no use; names it.
        """
        given = {}
        for key, value in request.items():
            # a list is what the viewer was offered: its first entry is the default
            if isinstance(value, list | tuple) and key == "prompt":
                value = value[0] if value else None
            if value is not None and value != "":
                given[key] = value
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _told(error) from None

    def rules(self, default: MaskRules) -> MaskRules:
        """From prompts to masks.

        Raises:
            InputError: an impossible number; names it.
        """
        given = self.model_dump(exclude={"prompt"}, exclude_none=True)
        try:
            return MaskRules(**(default.model_dump() | given))
        except ValidationError as error:
            raise _told(error) from None


class SharedDeSam(SharedSegmenter):
    """Loads DeSAM when it is first needed, once; on ESP-MedSAM's encoder where it is the same.

    Args:
        bundle: weights and modalities.
        beside: ESP-MedSAM's.
        versions: of its modalities, trained here.
        device: where it runs unless a request asks for another.
        batch_size: tiles in one pass; chosen by the device if not given.
        precision: of passes, as `DeSamSegmenter`'s; `fast` too.
    """

    def __init__(
        self,
        bundle: DeSamBundle,
        *,
        beside: SharedSegmenter | None = None,
        versions: VersionStore | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        precision: str = "auto",
        fast: bool = True,
    ) -> None:
        super().__init__(
            bundle,
            versions=versions,
            device=device,
            batch_size=batch_size,
            precision=precision,
            fast=fast,
        )
        own = bundle.description.backbone.sha256
        same = beside is not None and beside.bundle.description.backbone.sha256 == own
        self.beside = beside if same else None

    def _load(self, place: torch.device, stamp: Stamp | None) -> Loaded:
        start = time.perf_counter()
        bundle = self.versions.bundle() if self.versions else self.bundle
        assert isinstance(bundle, DeSamBundle)
        segmenter = DeSamSegmenter(
            bundle,
            device=str(place),
            batch_size=self.batch_size,
            precision=self.precision,
            fast=self.fast,
            beside=self.beside.get(str(place)) if self.beside is not None else None,
        )
        seconds = time.perf_counter() - start
        logger.info("Loaded %s on %s in %.1f s", bundle.path, place, seconds)
        return Loaded(segmenter, bundle, stamp)


class DeSamInferTask(EspMedSamInferTask):
    """Segmentation with DeSAM: no click, a box around the whole image or a grid of points."""

    assesses = False

    def __init__(
        self,
        modality: Modality,
        segmenters: SharedDeSam,
        *,
        check_images: bool = True,
        check_units: bool = True,
    ) -> None:
        bundle = segmenters.bundle
        assert isinstance(bundle, DeSamBundle)
        said, rules = bundle.description, bundle.rules(modality.name)
        # what viewers offer; a list's first entry is the default
        shown: dict[str, Any] = {
            "prompt": list(said.prompts),
            "points_per_side": rules.points_per_side,
            "iou_threshold": rules.iou_threshold,
            "smallest_region": rules.smallest_region,
        }
        self.beside = segmenters.beside
        check_images = check_images and self.beside is not None
        super().__init__(
            modality, segmenters, shown, check_images=check_images, check_units=check_units
        )
        self.description: str = f"DeSAM: {modality.title}. {modality.description}"

    def prompted(self, segmenter: Any, request: Mapping[str, Any]) -> Any:
        """The segmenter as a request wants it prompted.

        Raises:
            InputError: options of no use.
        """
        assert isinstance(segmenter, DeSamSegmenter)
        options = DeSamOptions.parse(request)
        return segmenter.prompted(
            options.prompt, options.rules(segmenter.rules(self.modality.name))
        )

    def check(self, segmenter: Any, image: MedicalImage) -> None:
        """Raises InputError where an image looks, to ESP-MedSAM, like one of another modality."""
        if self.beside is not None:
            super().check(self.beside.get(str(segmenter.device)), image)


class AddedDeSamTask(DeSamInferTask, AddedInferTask):
    """The same of a modality that the bundle lacks: from its first training on."""

    @property
    def model(self) -> str:
        """What viewers call it."""
        return desam_model_name(self.modality.name)


def _told(error: ValidationError) -> InputError:
    first = error.errors()[0]
    return InputError(f"params.{first['loc'][0]}: {first['msg']}")
