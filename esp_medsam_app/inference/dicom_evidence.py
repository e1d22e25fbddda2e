"""What DICOM's tags say of an image's modality; they may be missing, and wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.modalities import Modality, catalogue

# "Other" and what is no acquisition: says nothing of the image.
_UNINFORMATIVE = {"OT", "SC", "UNK"}
# Common parts that no modality may have a word for (PS3.16 annex L): to see that one is meant.
_PARTS = {
    "ABDOMEN", "ANKLE", "ARM", "BLADDER", "BRAIN", "BREAST", "CHEST", "COLON", "ELBOW", "EYE",
    "FOOT", "HAND", "HEAD", "HEART", "HIP", "JAW", "KIDNEY", "KNEE", "LEG", "LIVER", "LUNG",
    "NECK", "PANCREAS", "PELVIS", "PROSTATE", "SHOULDER", "SKULL", "SPINE", "STOMACH", "THIGH",
    "THORAX", "THYROID", "UTERUS", "WRIST",
}  # fmt: skip

Fit = Literal["exact", "wider", "any", "other"]


@dataclass(frozen=True)
class DicomEvidence:
    """What the tags leave of the modalities.

    Attributes:
        fitting: names that the tags allow; all where the tags are missing or say nothing.
        certain: one is left, and the tags name its part of the body.
        said: the tags in words; empty where they say nothing.
    """

    fitting: tuple[str, ...]
    certain: bool
    said: str


def dicom_evidence(image: MedicalImage, modalities: Mapping[str, Modality]) -> DicomEvidence:
    """Compare an image's tags with what the modalities are meant for.

    Modality (0008,0060) comes first; BodyPartExamined (0018,0015) narrows, or where it is missing
    the words of the descriptions. A modality of other parts of the body does not fit.
    """
    kind = (image.dicom_modality or "").strip().upper()
    if kind in _UNINFORMATIVE:
        kind = ""
    fitting = [
        name
        for name, modality in modalities.items()
        if not kind or kind in modality.dicom_modalities
    ]
    words = _words(image.dicom_body_part)
    shown = (image.dicom_body_part or "").strip()
    if not words:
        vocabulary = _PARTS.union(*map(_parts, modalities.values()))
        words = _words(image.dicom_description) & vocabulary
        shown = " ".join(sorted(words))
    fits: dict[str, Fit] = {name: _fit(modalities[name], words) for name in fitting}
    fitting = [name for name in fitting if fits[name] != "other"]
    certain = bool(kind) and len(fitting) == 1 and fits[fitting[0]] == "exact"
    said = f"{kind or 'an image'} of {shown}" if words else kind
    return DicomEvidence(tuple(fitting), certain, said)


def _fit(modality: Modality, words: set[str]) -> Fit:
    exact, wider = _own_parts(modality)
    if not words or not (exact or wider):
        return "any"
    if words & set(exact):
        return "exact"
    return "wider" if words & set(wider) else "other"


def _own_parts(modality: Modality) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Exact and wider parts; the catalogue's for a bundle from before they were written down."""
    if not (modality.body_parts or modality.wider_body_parts):
        modality = catalogue().get(modality.name, modality)
    return modality.body_parts, modality.wider_body_parts


def _parts(modality: Modality) -> set[str]:
    exact, wider = _own_parts(modality)
    return {*exact, *wider}


def _words(text: str | None) -> set[str]:
    """Words in capitals, and all of them as one: `Chest/Abd` has CHEST, ABD and CHESTABD."""
    words = re.findall(r"[A-Z]+", (text or "").upper())
    return {*words, "".join(words)} if words else set()
