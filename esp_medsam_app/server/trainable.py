"""Whether there are labels enough for a training, told before one starts."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from monailabel.interfaces.datastore import Datastore

from esp_medsam_app.errors import EspMedSamError, InputError
from esp_medsam_app.evaluation.splits import patient_of
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.annotated_cases import content_key, labelled_images
from esp_medsam_app.server.originals import KeepsOriginals

# one to learn from, and one to compare on
LEAST_PATIENTS = 2
# what a PACS index tells where the PACS tells nothing
_UNKNOWN = {"", "UNK"}


def check_labels(
    datastore: Datastore,
    modality: Modality,
    models: Collection[str],
    pattern: re.Pattern[str] | None = None,
) -> None:
    """Look for labels of two patients, and no further.

    Args:
        datastore: with the labels.
        modality: what is to be trained.
        models: names of all models of single modalities.
        pattern: finds the patient in an image's file name, see `patient_of`.

    Raises:
        InputError: there is no label of the modality, or they are all of one patient.
    """
    images = labelled_images(datastore, modality, models)
    names = ", ".join(modality.labels)
    if not images:
        raise InputError(
            f"no label of {modality.name} has been submitted yet",
            remedy=f"Submit labels of {names} of {LEAST_PATIENTS} patients or more, then train",
        )
    patients: set[str] = set()
    for image in images:
        patients.add(_patient(datastore, image, pattern))
        if len(patients) >= LEAST_PATIENTS:
            return
    told = "The only label" if len(images) == 1 else f"All {len(images)} labels"
    raise InputError(
        f"{told[0].lower()}{told[1:]} of {modality.name} "
        f"{'is' if len(images) == 1 else 'are'} of one patient, and a training needs "
        f"{LEAST_PATIENTS}: one to learn from, one to compare on",
        remedy=f"Submit a label of {names} of another patient, then train",
    )


def _patient(datastore: Datastore, image: str, pattern: re.Pattern[str] | None) -> str:
    told = datastore.get_image_info(image)
    if isinstance(datastore, KeepsOriginals):
        # what the PACS told of the series: nothing is downloaded for an answer
        patient = str(told.get("PatientID") or "")
        return f"image:{image}" if patient in _UNKNOWN else f"patient:{patient}"
    try:
        file = Path(datastore.get_image_uri(image))
        found = patient_of(file, pattern)
        return f"patient:{found}" if found is not None else content_key(image, file)
    except (EspMedSamError, OSError):
        # the training itself says what is wrong with it
        return f"image:{image}"
