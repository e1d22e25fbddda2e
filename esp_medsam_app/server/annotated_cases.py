"""Which of a datastore's labels a modality learns from."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_grid, read_label_map
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.evaluation.pairs import CasePair, read_pair
from esp_medsam_app.evaluation.splits import patient_of
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.conf import desam_model_name, model_name
from esp_medsam_app.server.originals import original
from esp_medsam_app.server.submitted_labels import (
    match_name,
    renumber,
    stored_names,
    told_modality,
)
from esp_medsam_app.weights.integrity import sha256_of

FINAL = str(DefaultLabelTag.FINAL.value)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotatedCase:
    """An image with a finished label.

    Attributes:
        pair: image and label map; its name is the image's id.
        keys: what the split ledger knows it by: patient, content of the image.
        names: of the label map's values, where they are not the modality's own.
    """

    pair: CasePair
    keys: tuple[str, ...]
    names: Mapping[int, str] | None = None


def annotated_cases(
    datastore: Datastore,
    modality: Modality,
    models: Collection[str],
    pattern: re.Pattern[str] | None = None,
) -> list[AnnotatedCase]:
    """The finished labels that are of this modality, by image id.

    A label belongs to the model that it was submitted with. Without a model of a single modality,
    it belongs to the modality that was noted with it, else the names in its `label_info` decide,
    and without those it is taken for the modality that is trained.

    Args:
        datastore: MONAI Label's.
        modality: what is trained.
        models: names of all models of single modalities.
        pattern: finds the patient in an image's file name, see `patient_of`.
    """
    found = []
    for image_id in sorted(datastore.get_labeled_images()):
        info = datastore.get_label_info(image_id, FINAL)
        try:
            if not is_of(info, modality, models):
                continue
            names = stored_names(info)
            image = original(datastore, image_id)
            pair = CasePair(image_id, image, Path(datastore.get_label_uri(image_id, FINAL)))
        except (EspMedSamError, HTTPException) as error:
            logger.warning("Image %s is left out: %s", image_id, error)
            continue
        matched = {value: match_name(name, modality.labels) for value, name in names.items()}
        same = all(name and modality.labels[name] == value for value, name in matched.items())
        found.append(AnnotatedCase(pair, _keys(image_id, image, pattern), None if same else names))
    return found


def labelled_images(datastore: Datastore, modality: Modality, models: Collection[str]) -> list[str]:
    """Ids of the images with a finished label of a modality, by what is known of the labels."""
    found = []
    for image_id in sorted(datastore.get_labeled_images()):
        try:
            if is_of(datastore.get_label_info(image_id, FINAL), modality, models):
                found.append(image_id)
        except InputError as error:
            logger.warning("Image %s is left out: %s", image_id, error)
    return found


def is_of(info: Mapping[str, Any], modality: Modality, models: Collection[str]) -> bool:
    """Whether a label is one of a modality, by its info; see `annotated_cases`.

    Raises:
        InputError: the info is damaged.
    """
    # an annotation is of its structure, whichever family of models drafted it
    own = {model_name(modality.name), desam_model_name(modality.name)}
    model, told = str(info.get("model")), told_modality(info)
    if model in own.union(models):
        return model in own
    if told is not None and model_name(told) in models:
        return told == modality.name
    return all(match_name(name, modality.labels) for name in stored_names(info).values())


def readable_cases(
    cases: Sequence[AnnotatedCase], modality: Modality, folder: Path
) -> list[AnnotatedCase]:
    """The cases that can be trained on; the log says of the others what is wrong with them.

    Args:
        cases: of the modality.
        modality: its labels.
        folder: for label maps that are renumbered.
    """
    fit = []
    for case in cases:
        try:
            pair = case.pair if case.names is None else _renumbered(case, modality, folder)
            read_pair(pair, modality)
        except InputError as error:
            logger.warning("Left out of the training: %s", error)
            continue
        fit.append(AnnotatedCase(pair, case.keys))
    return fit


def _renumbered(case: AnnotatedCase, modality: Modality, folder: Path) -> CasePair:
    assert case.names is not None
    given: MedicalImage = read_label_map(case.pair.label, read_grid(case.pair.image), kept=True)
    file = folder / f"{hashlib.sha256(case.pair.name.encode()).hexdigest()[:16]}.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    voxels = renumber(given.voxels, case.names, modality.labels)
    return CasePair(case.pair.name, case.pair.image, write_label_map(file, voxels, given.grid))


def _keys(image_id: str, image: Path, pattern: re.Pattern[str] | None) -> tuple[str, ...]:
    content, patient = content_key(image_id, image), patient_of(image, pattern)
    return (content,) if patient is None else (content, f"patient:{patient}")


def content_key(image_id: str, image: Path) -> str:
    """What tells the content of an image, whatever its name."""
    try:
        files = sorted(p for p in image.iterdir() if p.is_file()) if image.is_dir() else [image]
        sums = "".join(sha256_of(file) for file in files)
        return f"image:{hashlib.sha256(sums.encode()).hexdigest()}"
    except OSError:  # reading the case tells
        return f"id:{image_id}"
