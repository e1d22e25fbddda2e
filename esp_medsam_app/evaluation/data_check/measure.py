"""What the check keeps of a case, so that one case at a time is in memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.data_check.fingerprint import Fingerprint
from esp_medsam_app.evaluation.data_check.report import Finding, Kind
from esp_medsam_app.evaluation.pairs import CasePair, read_pair, read_reference
from esp_medsam_app.modalities import Intensity, Modality

# A piece this small, in voxels and relative to the whole label, is a slip of the brush.
SPECK_VOXELS = 8
SPECK_SHARE = 0.002


@dataclass(frozen=True)
class ImageFacts:
    """Of an image: whether all its values are equal, and how to recognise it."""

    constant: bool
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Structure:
    """A label in a case that has it.

    Attributes:
        slices: that have it.
        areas: sum over these slices of the share that it covers.
        share: of all voxels.
        size: share of a picture; mm3 in a volume with a place in the patient, else voxels.
        pieces: connected parts, specks left out.
        specks: parts of a few voxels.
        touches_all: whether one part reaches every border of the image.
    """

    slices: int
    areas: float
    share: float
    size: float
    pieces: int
    specks: int
    touches_all: bool


@dataclass(frozen=True)
class LabelFacts:
    """Of a label map: its slices, whether it is of a volume, and its labels by name."""

    slices: int
    volume: bool
    digest: bytes
    structures: Mapping[str, Structure]


@dataclass(frozen=True)
class Case:
    """A case of a split; `None` where the file could not be used."""

    split: str
    pair: CasePair
    patient: str | None
    image: ImageFacts | None
    label: LabelFacts | None


def measure_case(
    pair: CasePair, split: str, patient: str | None, modality: Modality
) -> tuple[Case, list[Finding]]:
    """Read a case and keep its facts; what cannot be used comes as findings."""
    findings: list[Finding] = []
    image: MedicalImage | None
    reference: MedicalImage | None
    try:
        image, reference = read_pair(pair, modality)
    except InputError as error:
        image, reference, findings = _one_by_one(pair, split, modality, error)
    case = Case(
        split,
        pair,
        patient,
        None if image is None else image_facts(image, modality.intensity),
        None if reference is None else label_facts(reference, modality),
    )
    return case, findings


def image_facts(image: MedicalImage, intensity: Intensity) -> ImageFacts:
    """The facts of an image."""
    slices = SliceView.of(image.grid).slices(image.voxels)
    constant = bool(image.voxels.min() == image.voxels.max())
    return ImageFacts(constant, Fingerprint.of(slices, intensity))


def label_facts(reference: MedicalImage, modality: Modality) -> LabelFacts:
    """The facts of a label map."""
    grid = reference.grid
    slices = SliceView.of(grid).slices(reference.voxels)
    volume = len(slices) > 1
    unit = 1 / slices.size
    if volume:
        unit = math.prod(grid.spacing) if grid.has_patient_space else 1.0
    structures = {
        name: structure_of(mask, unit)
        for name, value in modality.labels.items()
        if (mask := slices == value).any()
    }
    return LabelFacts(
        len(slices), volume, hashlib.sha256(reference.voxels.tobytes()).digest(), structures
    )


def structure_of(mask: NDArray[np.bool_], unit: float) -> Structure:
    """The facts of a label, from its slices `[S, H, W]`; `unit` is the size of a voxel."""
    voxels = int(mask.sum())
    areas = mask.mean(axis=(1, 2))
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    # parts in 3D of a volume; across edges and corners
    parts, _ = ndimage.label(mask[box], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    specks = int((sizes <= min(SPECK_VOXELS, SPECK_SHARE * voxels)).sum())
    return Structure(
        slices=int(np.count_nonzero(areas)),
        areas=float(areas.sum()),
        share=voxels / mask.size,
        size=voxels * unit,
        pieces=len(sizes) - specks,
        specks=specks,
        touches_all=_touches_all(parts, mask.shape),
    )


def _touches_all(parts: NDArray[np.int32], shape: tuple[int, ...]) -> bool:
    """Whether the box of a part is the whole image."""
    if parts.shape != shape:
        return False
    return any(
        box is not None
        and all(side.stop - side.start == n for side, n in zip(box, shape, strict=True))
        for box in ndimage.find_objects(parts)
    )


def _one_by_one(
    pair: CasePair, split: str, modality: Modality, error: InputError
) -> tuple[MedicalImage | None, MedicalImage | None, list[Finding]]:
    """After `read_pair` gave up: each file by itself, so that both are told if both are bad."""
    findings: list[Finding] = []
    image: MedicalImage | None = None
    reference: MedicalImage | None = None
    try:
        image = read_image(pair.image)
    except InputError as reason:
        findings.append(Finding.of_error(reason, "unreadable", split, pair.image))
    try:
        reference = read_reference(pair.label, modality, None if image is None else image.grid)
    except InputError as reason:
        kind: Kind = "label values" if _opens(pair.label) else "unreadable"
        findings.append(Finding.of_error(reason, kind, split, pair.label))
    if not findings:
        findings.append(Finding.of_error(error, "pair", split, pair.label))
        reference = None
    return image, reference, findings


def _opens(path: Path) -> bool:
    try:
        read_image(path)
    except InputError:
        return False
    return True
