"""Label maps as DICOM segmentations (PS3.3 A.51, C.8.20)."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import highdicom
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from skimage.color import rgb2lab

from esp_medsam_app import __version__
from esp_medsam_app.data.dicom import Planes
from esp_medsam_app.data.dicom_pixels import functional_group
from esp_medsam_app.errors import InputError

_MAKER = "ESP-MedSAM"
# What a text of value representation LO holds (PS3.5 6.2).
_LONGEST_NAME = 64
# Attributes that must be there, if only empty; old archives leave some of them out.
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_SEXES = ("M", "F", "O")


class Concept(NamedTuple):
    """A coded concept: value, coding scheme and meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Segment:
    """What a value of the label map stands for.

    Attributes:
        name: the label's.
        category: kind of thing.
        type: the thing.
        modifier: which one of several.
        region: where in the body.
        colour: red, green, blue, 0 to 255.
    """

    name: str
    category: Concept
    type: Concept
    colour: tuple[int, int, int]
    modifier: Concept | None = None
    region: Concept | None = None


@dataclass(frozen=True)
class Origin:
    """Who drew it.

    Attributes:
        algorithm: its name; empty: a person, without any.
        version: of the algorithm.
        corrected: a person has gone over what the algorithm drew.
        person: who; may be empty.
    """

    algorithm: str = ""
    version: str = ""
    corrected: bool = False
    person: str = ""

    @property
    def algorithm_type(self) -> str:
        """DICOM's word for it (0062,0008)."""
        if not self.algorithm:
            return "MANUAL"
        return "SEMIAUTOMATIC" if self.corrected else "AUTOMATIC"


def segmentation_of(
    labels: NDArray[np.integer],
    planes: Planes,
    segments: Sequence[Segment],
    origin: Origin,
    *,
    description: str,
    series_number: int = 1000,
    instance_uid: str | None = None,
) -> Dataset:
    """A binary segmentation of every frame of an image, empty ones too.

    All segments are described, drawn or not: segment number and label value are the same number.
    Readers that crop to the frames there are get the image's whole grid.

    Args:
        labels: of the shape of `planes.grid`; value k is `segments[k - 1]`, 0 is background.
        planes: of the image.
        segments: what the values mean.
        origin: who drew it.
        description: of the series, for people.
        series_number: of the new series.
        instance_uid: of the new instance; a new one if not given.

    Raises:
        InputError: an image without a place in the patient, names that DICOM cannot hold, or an
            image whose own DICOM is too damaged to refer to.
    """
    if labels.shape != planes.grid.shape:
        raise ValueError(f"labels of {labels.shape} on a grid of {planes.grid.shape}")
    _check_names(segments)
    sources = _sources(planes)
    frames = _frames(labels, planes, len(segments))
    uid = instance_uid or generate_uid()
    try:
        dataset = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(segments, origin),
            series_instance_uid=generate_uid(entropy_srcs=[uid, "series"]),
            series_number=series_number,
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer=_MAKER,
            manufacturer_model_name="ESP-MedSAM for MONAI Label",
            software_versions=__version__,
            device_serial_number="0",
            content_description=description[:_LONGEST_NAME],
            content_label="SEGMENTATION",
            content_creator_name=origin.person or None,
            omit_empty_frames=False,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=description[:_LONGEST_NAME],
        )
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise InputError(
            f"no DICOM SEG can be made of it: the image's own DICOM does not allow it ({error})",
            remedy="Save the label map as .nii.gz or .nrrd instead",
        ) from error
    now = datetime.datetime.now()
    dataset.SeriesDate, dataset.SeriesTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S.%f")
    for name in ("BodyPartExamined", "Laterality", "TimezoneOffsetFromUTC"):
        if sources[0].get(name):
            setattr(dataset, name, sources[0].get(name))
    # names of labels and people are in any script
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def no_patient_space(lacking: str = "position") -> InputError:
    """Why an image cannot have a DICOM segmentation that viewers show."""
    return InputError(
        f"the image's DICOM tells no {lacking} in the patient (as X-rays and photographs do not), "
        "to which the segments of a DICOM SEG could refer",
        remedy="Take the label map as .nii.gz, .nrrd or .png instead",
    )


def _check_names(segments: Sequence[Segment]) -> None:
    for segment in segments:
        name = segment.name
        if not name.strip() or len(name) > _LONGEST_NAME or "\\" in name or not name.isprintable():
            raise InputError(
                f"DICOM cannot hold the label's name {name!r}",
                remedy=f"Name it with 1 to {_LONGEST_NAME} printable characters, without \\",
            )


def _sources(planes: Planes) -> list[Dataset]:
    """The instances in the order of the frames to be written, completed where DICOM wants more."""
    if not planes.grid.has_patient_space:
        raise no_patient_space()
    if not planes.headers[0].get("FrameOfReferenceUID"):
        raise no_patient_space("frame of reference")
    if len(planes.headers) == 1:
        single = planes.headers[0]
        if len(planes.order) > 1 and "PerFrameFunctionalGroupsSequence" not in single:
            raise InputError(
                "a classic multi-frame image does not place its frames one by one, as the segments "
                "of a DICOM SEG have to refer to them",
                remedy="Take the label map as .nii.gz or .nrrd instead",
            )
        return [_completed(single)]
    return [_completed(planes.headers[index]) for index in planes.order]


def _completed(header: Dataset) -> Dataset:
    complete = copy.copy(header)
    for name in _TYPE_2:
        if name not in complete:
            setattr(complete, name, "")
    if complete.PatientSex not in _SEXES:
        complete.PatientSex = ""
    if "NumberOfFrames" in complete and "PerFrameFunctionalGroupsSequence" in complete:
        shared = copy.copy((complete.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
        for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            group = functional_group(complete, 0, name)
            if group is not None and name not in shared:
                setattr(shared, name, [group])
        complete.SharedFunctionalGroupsSequence = [shared]
    elif "NumberOfFrames" in complete:
        del complete.NumberOfFrames
    return complete


def _frames(labels: NDArray[np.integer], planes: Planes, count: int) -> NDArray[np.bool_]:
    """`[frames, rows, columns, segments]`, frames in the order of the source's."""
    slices = np.moveaxis(labels, 2, 0).swapaxes(1, 2)
    if len(planes.headers) == 1:
        slices = slices[np.argsort(planes.order)]
    return np.asarray(np.stack([slices == value for value in range(1, count + 1)], axis=-1))


def _descriptions(segments: Sequence[Segment], origin: Origin) -> list[Any]:
    return [_description(number, segment, origin) for number, segment in enumerate(segments, 1)]


def _description(number: int, segment: Segment, origin: Origin) -> Any:
    algorithm = None
    if origin.algorithm:
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=origin.algorithm[:_LONGEST_NAME],
            family=codes.DCM.ArtificialIntelligence,
            version=(origin.version or __version__)[:_LONGEST_NAME],
            source=_MAKER,
        )
    described = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment.type),
        algorithm_type=origin.algorithm_type,
        algorithm_identification=algorithm,
        anatomic_regions=[_coded(segment.region)] if segment.region else None,
    )
    if segment.modifier:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            _coded(segment.modifier)
        ]
    described.RecommendedDisplayCIELabValue = cielab(segment.colour)
    return described


def _coded(concept: Concept) -> Any:
    return highdicom.sr.CodedConcept(concept.value, concept.scheme, concept.meaning)


def cielab(colour: tuple[int, int, int]) -> list[int]:
    """A colour as DICOM writes it: three 16-bit values of L*a*b* (PS3.3 C.10.7.1.1).

    Relative to the white of sRGB, as viewers take it back: grey stays grey.
    """
    light, green_red, blue_yellow = rgb2lab(np.array(colour, float) / 255)
    ab = np.clip([green_red, blue_yellow], -128, 127)
    lab = highdicom.color.CIELabColor(float(np.clip(light, 0, 100)), *map(float, ab))
    return [int(value) for value in lab.value]
