"""Label maps of this server as DICOM segmentations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from esp_medsam_app import __version__
from esp_medsam_app.data.alignment import check_alignment
from esp_medsam_app.data.dicom import Planes, read_planes
from esp_medsam_app.data.dicom_seg_writing import Concept, Origin, Segment, segmentation_of
from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.modalities.catalogue import term_of
from esp_medsam_app.modalities.terms import Code, Term, unspecified_term
from esp_medsam_app.server.conf import model_name
from esp_medsam_app.server.reading import read_label_map
from esp_medsam_app.server.submitted_labels import (
    modality_of_names,
    renumber,
    stored_names,
    told_modality,
)

_ALGORITHM = "ESP-MedSAM"


def algorithm_of(
    model: str, version: object = None, *, corrected: bool, person: str = ""
) -> Origin:
    """What drew a label: a model of this server, perhaps corrected; or, without one, a person."""
    told = f"{__version__} weights {version}" if version is not None else __version__
    name = f"{_ALGORITHM} {model}" if model else ""
    # a person's name has components, of which the first is always there (PS3.5 6.2.1)
    return Origin(name, told, corrected, f"{person}^" if person and "^" not in person else person)


def segmentation(
    folder: Path,
    label: Path,
    names: Mapping[int, str],
    modality: Modality | None,
    origin: Origin,
    *,
    series_number: int = 1000,
    instance_uid: str | None = None,
) -> Dataset:
    """A label map as a DICOM segmentation of its image.

    Args:
        folder: of the image's instances, or its only file.
        label: file of the label map.
        names: what its values stand for.
        modality: whose labels they are; all of them are described, drawn or not. Without one,
            the names are.
        origin: who drew it.
        series_number: of the segmentation's series.
        instance_uid: of its instance; a new one if not given.

    Raises:
        InputError: the image has no place in the patient, or the label map does not fit it.
    """
    planes = read_planes(folder)
    labels = read_label_map(label, planes.grid, kept=True)
    check_alignment(labels.grid, planes.grid)
    segments, voxels = _segments(labels.voxels, names, modality)
    title = modality.title if modality is not None else "Labels"
    return segmentation_of(
        _shaped(voxels, planes),
        planes,
        segments,
        origin,
        description=f"{_ALGORITHM}: {title}",
        series_number=series_number,
        instance_uid=instance_uid,
    )


def submitted_segmentation(
    folder: Path,
    label: Path,
    info: Mapping[str, Any],
    models: Mapping[str, Modality],
    *,
    series_number: int,
    instance_uid: str,
) -> Dataset:
    """A label that somebody submitted, as a DICOM segmentation of its image.

    Args:
        folder: of the image's instances, or its only file.
        label: file of the label map.
        info: what the datastore knows of the label: model, version, user, names.
        models: the modality of each model of the server, by the model's name.
        series_number: of the segmentation's series.
        instance_uid: of its instance.

    Raises:
        InputError: as `segmentation`.
    """
    names = stored_names(info)
    modality = models.get(str(info.get("model")))
    if modality is None and (told := told_modality(info)) is not None:
        modality = models.get(model_name(told))
    if modality is None:
        modality = modality_of_names(set(names.values()), models.values())
    version = info.get("params", {}).get("version") if isinstance(info.get("params"), dict) else 0
    origin = algorithm_of(
        modality.name if modality is not None and info.get("model") else "",
        version.get("number") if isinstance(version, Mapping) else None,
        corrected=True,
        person=str(info.get("user") or ""),
    )
    return segmentation(
        folder,
        label,
        names,
        modality,
        origin,
        series_number=series_number,
        instance_uid=instance_uid,
    )


def _segments(
    voxels: NDArray[np.integer], names: Mapping[int, str], modality: Modality | None
) -> tuple[list[Segment], NDArray[np.integer]]:
    """Segments, and the label map in their numbers."""
    if modality is not None:
        labels = modality.labels
        terms = {name: term_of(modality, name) for name in labels}
        if names:
            voxels = renumber(voxels, names, labels)
    else:
        labels = {name: value for value, name in enumerate(dict.fromkeys(names.values()), start=1)}
        terms = {name: unspecified_term(value) for name, value in labels.items()}
        if not labels:
            raise InputError(
                "nobody has told what the label map's values mean",
                remedy="Send label_info with the label: names and values of the segments",
            )
        voxels = renumber(voxels, names, labels)
    return [_segment(name, terms[name]) for name in labels], voxels


def _shaped(voxels: NDArray[np.integer], planes: Planes) -> NDArray[np.integer]:
    return voxels.reshape(planes.grid.shape)


def _segment(name: str, term: Term) -> Segment:
    return Segment(
        name=name,
        category=_required(term.category),
        type=_required(term.type),
        colour=term.colour,
        modifier=_concept(term.modifier),
        region=_concept(term.region),
    )


def _required(code: Code) -> Concept:
    return Concept(code.value, code.scheme, code.meaning)


def _concept(code: Code | None) -> Concept | None:
    return None if code is None else _required(code)
