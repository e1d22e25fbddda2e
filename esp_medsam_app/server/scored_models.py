"""Which modality's scores decide what is shown next, under which weights, and how they are made."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask

from esp_medsam_app.active_learning.score_cache import weights_version
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.inference.assessment import Assessment
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.auto_task import AutoInferTask
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.server.shared_segmenter import SharedSegmenter
from esp_medsam_app.server.submitted_labels import (
    modality_of_names,
    stored_names,
    told_modality,
)
from esp_medsam_app.weights import Bundle
from esp_medsam_app.weights.versions import Stamp

_FINAL = str(DefaultLabelTag.FINAL.value)


class ScoredModels:
    """The modalities that are served, as active learning sees them.

    Args:
        tasks: the app's models by name.
    """

    def __init__(self, tasks: Mapping[str, InferTask]) -> None:
        ours = [
            task
            for task in tasks.values()
            if isinstance(task, EspMedSamInferTask) and task.assesses
        ]
        single = [task for task in ours if not isinstance(task, AutoInferTask)]
        self.modalities: dict[str, Modality] = {
            task.modality.name: task.modality for task in single
        }
        self._weights = {task.modality.name: _Weights(task.segmenters) for task in single}
        for task in ours:
            # where the only model is the one that reads the modality from the image
            if isinstance(task, AutoInferTask) and not single:
                self.modalities |= task.modalities
                weights = _Weights(task.segmenters)
                self._weights |= dict.fromkeys(task.modalities, weights)

    def chosen(self, request: Mapping[str, Any], datastore: Datastore) -> str | None:
        """The modality whose scores a request is about.

        It is that of the request's `model`, if it names one of a single modality. Else it is the
        one that most submitted labels are of: what is annotated here. Without labels, or as many
        of several, it is the one that is served first; none where none is served.
        """
        return self.wanted(request, datastore) or next(iter(self.modalities), None)

    def wanted(self, request: Mapping[str, Any], datastore: Datastore) -> str | None:
        """The same, but none where nothing says that it is that one."""
        for name in self.modalities:
            if request.get("model") in (name, model_name(name)):
                return name
        if len(self.modalities) == 1:
            return next(iter(self.modalities))
        counts = Counter(self._annotated(datastore))
        # the first of equal ones
        return max(self.modalities, key=lambda name: counts[name]) if counts else None

    def reader(self) -> str:
        """A name for what reads modalities: another one tells others apart."""
        told = ""
        for weights in self._weights.values():
            bundle = weights.segmenters.bundle
            kind = bundle.description.modality_classifier
            told = f"{sorted(bundle.told_apart)} {bundle.description.backbone.sha256} {kind!r}"
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def told_apart(self, modality: str) -> bool:
        """Whether a modality is one of those among which that of an image is read."""
        return modality in self._weights[modality].bundle().told_apart

    def read(self, modality: str, image: MedicalImage) -> tuple[str, ...]:
        """The modalities that an image may be of, by its tags and by what it looks like.

        Args:
            modality: whose weights to use; one of those told apart.
            image: to look at.

        Raises:
            InputError: the image cannot be used.
            WeightsError: the weights are missing or damaged.
        """
        reading = self._weights[modality].segmenters.get().read_modality(image)
        return (reading.name,) if reading.name else tuple(reading.candidates)

    def version(self, modality: str) -> str:
        """A name for the modality's weights that serve now; loads nothing into memory."""
        return weights_version(self._weights[modality].bundle(), modality)

    def assess(
        self, modality: str, image: MedicalImage, before_pass: Callable[[], None]
    ) -> tuple[str, Assessment]:
        """Assess an image with the weights that serve now, one tile at a time.

        Returns:
            The name of these weights, and what was found.

        Raises:
            InputError: the image cannot be used.
            WeightsError, OutOfMemoryError: nothing can be assessed now.
        """
        segmenter = self._weights[modality].segmenters.get()
        assessment = segmenter.assess(
            image, self.modalities[modality], batch_size=1, before_pass=before_pass
        )
        return weights_version(segmenter.bundle, modality), assessment

    def _annotated(self, datastore: Datastore) -> list[str]:
        """The modality of each submitted label, where it is known."""
        found = []
        models = {model_name(name): name for name in self.modalities}
        for image in datastore.get_labeled_images():
            info = datastore.get_label_info(image, _FINAL)
            try:
                names = set(stored_names(info).values())
            except InputError:
                names = set()
            model = str(info.get("model"))
            modality = modality_of_names(names, self.modalities.values())
            told = told_modality(info)
            if model in models:
                found.append(models[model])
            elif told in self.modalities:
                found.append(str(told))
            elif modality is not None:
                found.append(modality.name)
        return found


class _Weights:
    """What a shared segmenter serves, read from disk when it changes."""

    def __init__(self, segmenters: SharedSegmenter) -> None:
        self.segmenters = segmenters
        self._read: tuple[Stamp | None, Bundle] | None = None

    def bundle(self) -> Bundle:
        versions = self.segmenters.versions
        if versions is None:
            return self.segmenters.bundle
        stamp = versions.stamp()
        if self._read is None or self._read[0] != stamp:
            before = self._read[1] if self._read else None
            self._read = stamp, versions.bundle(like=before)
        return self._read[1]
