"""Series that hold more than one image, or less than one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset
from support.dicom_phantoms import SAGITTAL, enhanced, localizer_of, phases, picture, volume

from esp_medsam_app.data.dicom import read_dicom
from esp_medsam_app.data.dicom_parts import SeriesParts, parts_of
from esp_medsam_app.errors import InputError


def parts(datasets: Sequence[FileDataset]) -> SeriesParts:
    mixed = list(datasets)
    random.Random(1).shuffle(mixed)
    return parts_of(mixed)


def sizes(found: SeriesParts) -> list[int]:
    return [len(part.headers) for part in found.parts]


def test_a_volume_is_one_image() -> None:
    found = parts(volume(6))
    assert sizes(found) == [6]
    assert found.aside == []


@pytest.mark.parametrize("kind", ["LOCALIZER", "AXIAL"])
def test_a_localizer_is_set_aside(kind: str) -> None:
    slices = volume(6)
    found = parts([*slices, localizer_of(slices, kind)])
    assert sizes(found) == [6]
    assert len(found.aside) == 1


def test_phases_at_the_same_places_are_split_by_their_acquisition() -> None:
    found = parts(phases(4))
    assert sizes(found) == [4, 4]
    assert [part.told_by for part in found.parts] == ["AcquisitionNumber 1", "AcquisitionNumber 2"]


def test_phases_that_nothing_tells_apart_stay_together(tmp_path: Path) -> None:
    slices = phases(4, AcquisitionNumber=1)
    found = parts(slices)
    assert sizes(found) == [8]
    with pytest.raises(InputError, match="same place"):
        read_dicom(saved(found, tmp_path))


def test_times_that_all_differ_make_no_volumes_of_single_slices() -> None:
    slices = phases(4, AcquisitionNumber=1)
    for number, slice_ in enumerate(slices):
        slice_.AcquisitionTime = f"1015{number:02d}"
    assert sizes(parts(slices)) == [8]


def test_a_missing_slice_is_told(tmp_path: Path) -> None:
    slices = volume(8)
    del slices[3]
    found = parts(slices)
    assert sizes(found) == [7]
    with pytest.raises(InputError, match="1 missing"):
        read_dicom(saved(found, tmp_path))


def test_two_scans_with_a_gap_between_them_are_two_images() -> None:
    slices = volume(9)
    del slices[4]
    for number, slice_ in enumerate(slices):
        slice_.AcquisitionNumber = 1 + number // 4
    assert sizes(parts(slices)) == [4, 4]


def test_two_stacks_in_different_planes_are_two_images() -> None:
    one, other = volume(4), volume(4, orientation=SAGITTAL)
    for slice_ in other:
        slice_.SeriesInstanceUID = one[0].SeriesInstanceUID
        slice_.InstanceNumber += 10
    assert sizes(parts([*one, *other])) == [4, 4]


def test_a_tilted_gantry_is_one_image() -> None:
    tilted = np.array([0, np.tan(np.radians(15)) * 2.5, 2.5])
    assert sizes(parts(volume(6, step=tilted))) == [6]


def test_images_without_a_place_stand_for_themselves() -> None:
    one = picture("CR")
    other = picture("CR", SeriesInstanceUID=one.SeriesInstanceUID)
    other.InstanceNumber = 2
    found = parts([other, one])
    assert [part.headers[0].InstanceNumber for part in found.parts] == [1, 2]


def test_a_multi_frame_image_stands_for_itself() -> None:
    assert sizes(parts([enhanced()])) == [1]


def test_an_instance_that_came_twice_counts_once() -> None:
    slices = volume(4)
    assert sizes(parts([*slices, slices[0]])) == [4]


def test_a_series_of_reports_holds_no_image() -> None:
    report = picture("CR")
    report.Modality = "SR"
    with pytest.raises(InputError, match="no image"):
        parts_of([report])


def saved(found: SeriesParts, folder: Path) -> Path:
    for header in found.parts[0].headers:
        header.save_as(folder / f"{header.SOPInstanceUID}.dcm", write_like_original=False)
    return folder
