"""What the project knows of a modality before any image is read."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from esp_medsam_app.modalities.terms import Term

AcquisitionChange = Literal[
    "colour",
    "cutout",
    "frame",
    "highlights",
    "illumination",
    "inversion",
    "jpeg",
    "low_resolution",
    "panels",
    "ringing",
    "speckle",
    "stain",
    "text",
    "window",
]
BodyPart = Annotated[str, StringConstraints(pattern=r"^[A-Z]+$")]
NAME = re.compile(r"[a-z][a-z0-9_]*")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Intensity(_Frozen):
    """How grey values become the [0, 1] that the backbone expects.

    Attributes:
        kind: `range` maps minimum and maximum of the image to 0 and 1; `percentiles` the two
            percentiles; `window` the two values of the image's unit (Hounsfield units in CT).
            8-bit pictures count as windowed already: 0 and 255 are mapped.
        low: lower percentile or value.
        high: upper percentile or value.
    """

    kind: Literal["range", "percentiles", "window"] = "range"
    low: float = 0.0
    high: float = 100.0

    @model_validator(mode="after")
    def _ordered(self) -> Intensity:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.kind == "percentiles" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        return self


class Tiles(_Frozen):
    """How many tiles lie along an image's longest side.

    One tile is the network's input. More than one keeps thin and small structures visible: the
    image is scaled so that whole tiles cover it. Between `least` and `most` the number follows
    the image's own size, so that it is not scaled more than needed.
    """

    least: int = Field(default=1, ge=1, le=16)
    most: int = Field(default=1, ge=1, le=16)

    @model_validator(mode="after")
    def _ordered(self) -> Tiles:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) is above most ({self.most})")
        return self


class Augmentation(_Frozen):
    """What may change in an image of this modality without making it another.

    Attributes:
        flips: subset of `left_right`, `up_down`.
        quarter_turns: any rotation by 90 degrees.
        rotation: largest other rotation, degrees.
        scale: largest relative change of size; 0.5 gives two thirds to one and a half times.
        aspect: largest relative change of the ratio of height to width.
        intensity: strength of gamma, contrast, noise and blur, 0 to 1.
        acquisition: how other devices and sites differ: `colour` (cast, saturation, grey),
            `cutout` (boxes that hide the image), `frame` (the surround of an endoscope),
            `highlights` (reflections), `illumination` (uneven light, a coil's bias field,
            attenuation), `inversion` (dark on bright and the other way), `jpeg` (compression),
            `low_resolution`, `panels` (a second picture, redaction bars), `ringing` (Gibbs),
            `speckle`, `stain` (other dyes and filters), `text` (burnt-in text, calipers),
            `window` (narrower and wider ones, of CT).
    """

    flips: tuple[Literal["left_right", "up_down"], ...] = ()
    quarter_turns: bool = False
    rotation: float = Field(default=10.0, ge=0, le=180)
    scale: float = Field(default=0.1, ge=0, le=2)
    aspect: float = Field(default=0.0, ge=0, le=1)
    intensity: float = Field(default=0.5, ge=0, le=1)
    acquisition: tuple[AcquisitionChange, ...] = ()


class Modality(_Frozen):
    """An entry of the catalogue. It owns one controller and a query for each label.

    Attributes:
        name: identifier, `[a-z][a-z0-9_]*`; the served model is `esp_medsam_<name>`.
        title: for people.
        description: one or two sentences for people.
        dimension: 2 for pictures, 3 for volumes.
        labels: name to id, dense 1..N in alphabetical order (a list in YAML is numbered so).
        dicom_modalities: values of DICOM's Modality (0008,0060) it is meant for.
        body_parts: values of DICOM's BodyPartExamined (0018,0015; terms of PS3.16 annex L), as
            letters without spaces: an image of such a part is one of this modality. None: any.
        wider_body_parts: larger parts, of which an image may be one of this modality or not.
        intensity: how grey values are scaled.
        tiles: how large images are cut.
        augmentation: for training.
        paired_labels: pairs of labels of a left and a right structure. A mirrored training image
            has them exchanged.
        terms: codes and colours by label, for DICOM; labels may lack one.
    """

    name: str
    title: str
    description: str
    dimension: Literal[2, 3]
    labels: dict[str, int]
    dicom_modalities: tuple[str, ...] = ()
    body_parts: tuple[BodyPart, ...] = ()
    wider_body_parts: tuple[BodyPart, ...] = ()
    intensity: Intensity = Intensity()
    tiles: Tiles = Tiles()
    augmentation: Augmentation = Augmentation()
    paired_labels: tuple[tuple[str, str], ...] = ()
    terms: dict[str, Term] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _terms_of_labels(self) -> Modality:
        strange = sorted(set(self.terms) - set(self.labels))
        if strange:
            raise ValueError(f"terms of {', '.join(strange)}, which is none of the labels")
        return self

    @model_validator(mode="after")
    def _pairs_of_labels(self) -> Modality:
        named = [label for pair in self.paired_labels for label in pair]
        strange = sorted(set(named) - set(self.labels))
        if strange:
            raise ValueError(
                f"paired_labels names {', '.join(strange)}, which is none of the labels"
            )
        if len(set(named)) < len(named):
            raise ValueError("paired_labels names a label twice")
        return self

    @field_validator("name")
    @classmethod
    def _identifier(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not made of a-z, 0-9 and _ after a first letter")
        return name

    @field_validator("labels", mode="before")
    @classmethod
    def _dense(cls, labels: object) -> object:
        """Number a list alphabetically; accept a mapping only if it is numbered that way.

        Slicer takes labels by position and OHIF sorts them by name: with ids in alphabetical
        order both agree with the voxels.
        """
        if isinstance(labels, list | tuple):
            names = sorted(labels)
            if len(set(names)) != len(names):
                raise ValueError("a label is named twice")
            labels = {name: index for index, name in enumerate(names, start=1)}
        if isinstance(labels, dict):
            if not labels or "background" in labels:
                raise ValueError("at least one label is needed, and background is not one")
            if labels != {name: i for i, name in enumerate(sorted(labels), start=1)}:
                raise ValueError("label ids must be 1..N in alphabetical order")
            return dict(sorted(labels.items()))
        return labels
