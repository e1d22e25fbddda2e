"""The classifier of modalities inside a bundle: read, written, with its figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import WeightsError
from esp_medsam_app.weights.bundle import Bundle, save_description
from esp_medsam_app.weights.integrity import check_sha256, read_safetensors, sha256_of
from esp_medsam_app.weights.modality_classifier import ClassifierDescription, ModalityClassifier

CLASSIFIER = "modality_classifier.safetensors"


def load_classifier(bundle: Bundle) -> ModalityClassifier | None:
    """A bundle's classifier; none if it has none.

    Raises:
        WeightsError: its file is missing, damaged or does not fit the description.
    """
    description = bundle.description.modality_classifier
    if description is None:
        return None
    path = bundle.path / CLASSIFIER
    check_sha256(path, bundle.description.files.get(CLASSIFIER, "none"))
    tensors = read_safetensors(path)
    mean, projection, centres, reach = (
        tensors.get(name) for name in ("mean", "projection", "centres", "reach")
    )
    if (
        mean is None
        or projection is None
        or centres is None
        or reach is None
        or projection.ndim != 2
        or mean.shape != projection.shape[:1]
        or centres.shape != (len(description.modalities), projection.shape[1])
        or reach.shape != centres.shape[:1]
    ):
        raise WeightsError(
            "this is no classifier of the modalities in bundle.json",
            path=path,
            remedy="Fit it again: esp-medsam classifier train",
        )
    return ModalityClassifier(description, mean, projection, centres, reach)


def save_classifier(
    bundle: Bundle, classifier: ModalityClassifier, training: Mapping[str, Any]
) -> Bundle:
    """Write a classifier into a bundle, in place of the one before; `bundle.json` comes last.

    Args:
        bundle: it is written to its folder.
        classifier: fitted on the bundle's backbone.
        training: on what.
    """
    content = save(
        {
            "mean": classifier.mean.float().contiguous(),
            "projection": classifier.projection.half().contiguous(),
            "centres": classifier.centres.float().contiguous(),
            "reach": classifier.reach.float().contiguous(),
        }
    )
    path = bundle.path / CLASSIFIER
    with written_whole(path) as partial:
        partial.write_bytes(content)
    described = classifier.description.model_copy(update={"training": dict(training), "scores": {}})
    files = {**bundle.description.files, CLASSIFIER: sha256_of(path)}
    return _described(bundle, described, files)


def carry_over(old: Bundle, new: Bundle) -> Bundle:
    """Give a bundle the classifier of the one that it was trained from, with its figures.

    It looks at the backbone alone: as long as that is the same, it reads the same. Nothing is done
    where the old bundle has none or stands on another backbone, or the new one has one.

    Raises:
        WeightsError: the old bundle's is damaged.
    """
    told = old.description.modality_classifier
    same = old.description.backbone.sha256 == new.description.backbone.sha256
    if told is None or not same or new.description.modality_classifier is not None:
        return new
    digest = old.description.files.get(CLASSIFIER, "none")
    check_sha256(old.path / CLASSIFIER, digest)
    with written_whole(new.path / CLASSIFIER) as partial:
        shutil.copyfile(old.path / CLASSIFIER, partial)
    return _described(new, told, {**new.description.files, CLASSIFIER: digest})


def keep_scores(bundle: Bundle, split: str, figures: Mapping[str, Any]) -> Bundle:
    """Write figures of `esp-medsam classifier evaluate` into `bundle.json`.

    Raises:
        WeightsError: the bundle has no classifier.
    """
    described = bundle.description.modality_classifier
    if described is None:
        raise WeightsError(
            "the bundle has no classifier to keep figures of",
            path=bundle.path,
            remedy="Fit one: esp-medsam classifier train",
        )
    scores = {**described.scores, split: dict(figures)}
    return _described(
        bundle, described.model_copy(update={"scores": scores}), bundle.description.files
    )


def _described(
    bundle: Bundle, classifier: ClassifierDescription, files: Mapping[str, str]
) -> Bundle:
    description = bundle.description.model_copy(
        update={"modality_classifier": classifier, "files": dict(files)}
    )
    saved = Bundle(bundle.path, description)
    save_description(saved)
    return saved
