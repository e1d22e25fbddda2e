"""What a DICOM series is made of: often one volume, sometimes several images (PS3.3 C.7.3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from esp_medsam_app.data.dicom import is_image
from esp_medsam_app.data.dicom_geometry import PARALLEL, Frame, volume_grid
from esp_medsam_app.data.dicom_instances import without_captures, without_copies
from esp_medsam_app.errors import InputError

# Attributes that tell phases, echoes and stacks of one series apart, the plainest first.
_KEYS = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers",
    "EchoTime", "DiffusionBValue", "TriggerTime", "ContentTime", "ImageType",
    "AcquisitionDateTime", "AcquisitionTime",
)  # fmt: skip
# So few slices beside a volume are its localizers.
_FEW = 2


@dataclass(frozen=True, eq=False)
class Part:
    """One image of a series.

    Attributes:
        headers: of its instances, without pixels.
        told_by: what distinguishes it from the series' other parts, for people.
    """

    headers: list[Dataset]
    told_by: str


@dataclass(frozen=True, eq=False)
class SeriesParts:
    """What a series is made of.

    Attributes:
        parts: its images, in the order of the series' instance numbers.
        aside: localizers and secondary captures beside a volume, and what is no image.
    """

    parts: list[Part]
    aside: list[Dataset]


def parts_of(headers: Sequence[Dataset]) -> SeriesParts:
    """Split a series as its headers say.

    Multi-frame images and those without a place in the patient (X-rays, photographs) stand for
    themselves. The others are split by plane, size and frame of reference; then, where slices
    share a place or are not evenly spaced, by the first attribute (acquisition, time, echo, ...)
    that leaves nothing but sound volumes. Where none does, the part stays as it is, and reading it
    tells why it is no volume.

    Args:
        headers: of one series in any order, each with its file's name in `filename`.

    Raises:
        InputError: an orientation that is none, or no image at all.
    """
    unique = without_copies(headers)
    images, captures = without_captures([header for header in unique if is_image(header)])
    aside = [header for header in unique if not is_image(header)] + captures
    if not images:
        raise InputError("the series holds no image", remedy="Choose the series of the images")
    volumes = [header for header in images if not _is_localizer(header)] or images
    localizers = [header for header in images if all(header is not kept for kept in volumes)]
    parts = [part for stack in _stacks(volumes) for part in _split(stack)]
    large = [part for part in parts if len(part.headers) > _FEW]
    if len(large) == 1 and all(_has_place(part) for part in parts):
        localizers += [header for part in parts if part is not large[0] for header in part.headers]
        parts = large
    parts.sort(key=lambda part: min(map(_number, part.headers)))
    return SeriesParts(parts, aside + localizers)


def _is_localizer(header: Dataset) -> bool:
    return "LOCALIZER" in [str(value).upper() for value in header.get("ImageType") or []]


def _has_place(part: Part) -> bool:
    return all(frame.has_position for header in part.headers for frame in _frames(header))


def _number(header: Dataset) -> tuple[int, str]:
    try:
        number = int(header.get("InstanceNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return number, str(header.get("SOPInstanceUID", ""))


def _stacks(headers: Sequence[Dataset]) -> list[Part]:
    """Instances by plane, size and frame of reference."""
    found: list[tuple[Frame, tuple[object, ...], Part]] = []
    alone: list[Part] = []
    for header in sorted(headers, key=_number):
        first = _frames(header)[0]
        if int(header.get("NumberOfFrames", 1) or 1) > 1 or not first.has_position:
            alone.append(Part([header], f"instance {_number(header)[0]}"))
            continue
        kind = (
            int(header.Rows),
            int(header.Columns),
            int(header.get("SamplesPerPixel", 1)),
            str(header.get("FrameOfReferenceUID", "")),
        )
        for other, other_kind, part in found:
            if kind == other_kind and _parallel(first, other):
                part.headers.append(header)
                break
        else:
            found.append((first, kind, Part([header], f"from instance {_number(header)[0]}")))
    return [part for _, _, part in found] + alone


def _parallel(one: Frame, other: Frame) -> bool:
    assert one.along_row is not None
    assert other.along_row is not None
    turned = max(
        np.abs(one.normal - other.normal).max(), np.abs(one.along_row - other.along_row).max()
    )
    return bool(turned <= PARALLEL and np.allclose(one.spacing, other.spacing, rtol=1e-3))


def _split(part: Part) -> list[Part]:
    """A stack as it is if it is a volume; else what its attributes make of it."""
    if len(part.headers) == 1 or _is_volume(part.headers):
        return [part]
    for key in _KEYS:
        groups: dict[str, list[Dataset]] = defaultdict(list)
        for header in part.headers:
            value = header.get(key)
            groups["" if value is None else str(value)].append(header)
        if (
            len(groups) > 1
            # slices that all differ say nothing of volumes
            and min(map(len, groups.values())) > 1
            and "" not in groups
            and all(map(_is_volume, groups.values()))
        ):
            return [Part(group, f"{key} {value}") for value, group in groups.items()]
    return [part]


def _is_volume(headers: Sequence[Dataset]) -> bool:
    frames = [frame for header in headers for frame in _frames(header)]
    try:
        volume_grid(frames, (1, 1), Path())
    except InputError:
        return False
    return True


def _frames(header: Dataset) -> list[Frame]:
    return Frame.all_of(header, Path(str(getattr(header, "filename", None) or "")))
