"""DICOM segmentations, written and read back."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pydicom_seg
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from support.dicom_phantoms import (
    AXIAL,
    COLUMNS,
    ROWS,
    SAGITTAL,
    enhanced,
    oblique,
    picture,
    volume,
)

from esp_medsam_app.data.dicom import Planes, read_planes
from esp_medsam_app.data.dicom_seg_reading import head_of, labels_on, read_segmentation_file
from esp_medsam_app.data.dicom_seg_writing import (
    Concept,
    Origin,
    Segment,
    cielab,
    segmentation_of,
)
from esp_medsam_app.errors import InputError

BODY = Concept("123037004", "SCT", "Anatomical Structure")
LIVER = Segment("liver", BODY, Concept("10200004", "SCT", "Liver"), (221, 130, 101))
SPLEEN = Segment("Läsion 肝", BODY, Concept("78961009", "SCT", "Spleen"), (157, 108, 162))
LEFT = Segment(
    "left lung", BODY, Concept("39607008", "SCT", "Lung"), (1, 2, 3),
    modifier=Concept("7771000", "SCT", "Left"), region=Concept("39607008", "SCT", "Lung"),
)  # fmt: skip
DRAWN = Origin("ESP-MedSAM ct_liver", "0.1 weights 3")
TILT = np.array([0, np.tan(np.radians(15)) * 2.5, 2.5])

needs_validator = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: dicom3tools)"
)


def stored(datasets: Sequence[FileDataset], folder: Path) -> Planes:
    """On disk in no order."""
    mixed = list(datasets)
    random.Random(2).shuffle(mixed)
    folder.mkdir()
    for number, dataset in enumerate(mixed):
        dataset.save_as(folder / f"{number}.dcm", write_like_original=False)
    return read_planes(folder)


def drawn(planes: Planes, highest: int = 2) -> NDArray[np.uint8]:
    random_state = np.random.default_rng(3)
    labels = random_state.integers(0, highest + 1, planes.grid.shape).astype(np.uint8)
    # the first slice stays empty
    labels[..., 0] = 0
    return labels


def written(dataset: Dataset, folder: Path) -> Dataset:
    file = folder / "seg.dcm"
    dataset.save_as(file, write_like_original=False)
    return read_segmentation_file(file)


SERIES = {
    "axial": lambda: volume(5),
    "oblique": lambda: volume(5, orientation=oblique()),
    "sagittal": lambda: volume(5, orientation=SAGITTAL, modality="MR"),
    "single slice": lambda: volume(1),
    "tilted gantry": lambda: volume(5, step=TILT),
    "enhanced multi-frame": lambda: [enhanced(5)],
    "tilted enhanced multi-frame": lambda: [enhanced(5, step=TILT)],
}


@pytest.mark.parametrize("kind", SERIES)
def test_every_voxel_comes_back(kind: str, tmp_path: Path) -> None:
    planes = stored(SERIES[kind](), tmp_path / "series")
    labels = drawn(planes)
    dataset = written(
        segmentation_of(labels, planes, [LIVER, SPLEEN], DRAWN, description="test"), tmp_path
    )
    assert np.array_equal(labels_on(dataset, planes.grid), labels)
    head = head_of(dataset)
    assert head.names == {1: "liver", 2: "Läsion 肝"}
    assert head.instances == {str(header.SOPInstanceUID) for header in planes.headers}
    assert head.automatic


@pytest.mark.parametrize("kind", ["axial", "oblique", "tilted gantry"])
def test_each_frame_lies_on_the_slice_that_it_refers_to(kind: str, tmp_path: Path) -> None:
    planes = stored(SERIES[kind](), tmp_path / "series")
    labels = drawn(planes)
    dataset = segmentation_of(labels, planes, [LIVER, SPLEEN], DRAWN, description="test")
    sources = {str(header.SOPInstanceUID): header for header in planes.headers}
    where = {
        str(planes.headers[index].SOPInstanceUID): place for place, index in enumerate(planes.order)
    }
    frames = dataset.pixel_array
    # full grid: every frame of every segment
    assert len(frames) == 2 * len(planes.headers)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert position == sources[source].ImagePositionPatient
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert np.array_equal(frame.T, labels[:, :, where[source]] == number)


def test_a_reader_that_crops_gets_the_whole_grid(tmp_path: Path) -> None:
    planes = stored(volume(6), tmp_path / "series")
    labels = np.zeros(planes.grid.shape, np.uint8)
    labels[4:6, 3:5, 3] = 2
    dataset = segmentation_of(labels, planes, [LIVER, SPLEEN], DRAWN, description="test")
    image = pydicom_seg.MultiClassReader().read(written(dataset, tmp_path)).image
    assert image.GetSize() == planes.grid.shape


def test_an_empty_mask_is_a_segmentation_too(tmp_path: Path) -> None:
    planes = stored(volume(4), tmp_path / "series")
    labels = np.zeros(planes.grid.shape, np.uint8)
    dataset = segmentation_of(labels, planes, [LIVER, SPLEEN], DRAWN, description="nothing")
    again = written(dataset, tmp_path)
    assert not labels_on(again, planes.grid).any()
    assert [item.SegmentLabel for item in again.SegmentSequence] == ["liver", "Läsion 肝"]


def test_what_a_segment_says_of_itself(tmp_path: Path) -> None:
    planes = stored(volume(3), tmp_path / "series")
    dataset = written(
        segmentation_of(drawn(planes, 1), planes, [LEFT], DRAWN, description="Lunge links äöü"),
        tmp_path,
    )
    segment = dataset.SegmentSequence[0]
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    modifier = kind.SegmentedPropertyTypeModifierCodeSequence[0]
    assert (segment.SegmentNumber, segment.SegmentLabel) == (1, "left lung")
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("39607008", "SCT")
    assert modifier.CodeValue == "7771000"
    assert segment.AnatomicRegionSequence[0].CodeValue == "39607008"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == segment.SegmentAlgorithmName == "ESP-MedSAM ct_liver"
    assert algorithm.AlgorithmVersion == "0.1 weights 3"
    assert segment.RecommendedDisplayCIELabValue == cielab((1, 2, 3))
    assert dataset.SeriesDescription == "Lunge links äöü"
    assert str(dataset.PatientName) == "Müller^Anna"
    assert dataset.PatientID == "P1"
    assert dataset.StudyInstanceUID == planes.headers[0].StudyInstanceUID


@pytest.mark.parametrize(
    ("origin", "kind"),
    [
        (Origin("net", "1"), "AUTOMATIC"),
        (Origin("net", "1", corrected=True), "SEMIAUTOMATIC"),
        (Origin(person="Doe^"), "MANUAL"),
    ],
)
def test_who_has_drawn_it(origin: Origin, kind: str, tmp_path: Path) -> None:
    planes = stored(volume(3), tmp_path / "series")
    dataset = segmentation_of(drawn(planes), planes, [LIVER, SPLEEN], origin, description="x")
    assert {item.SegmentAlgorithmType for item in dataset.SegmentSequence} == {kind}
    assert head_of(dataset).automatic == (kind == "AUTOMATIC")


def test_colours_as_dicom_writes_them() -> None:
    # white and black of L*a*b*; a and b of 0 are in the middle
    middle = round(128 / 255 * 65535)
    assert np.allclose(cielab((255, 255, 255)), [65535, middle, middle], atol=40)
    assert np.allclose(cielab((0, 0, 0)), [0, middle, middle], atol=40)
    # pure red is L* 53.24, a* 80.09, b* 67.20
    red = [53.24 / 100, (80.09 + 128) / 255, (67.20 + 128) / 255]
    assert np.allclose(np.array(cielab((255, 0, 0))) / 65535, red, atol=2e-3)


def test_an_x_ray_is_told_why_it_has_none(tmp_path: Path) -> None:
    planes = stored([picture("CR")], tmp_path / "series")
    with pytest.raises(InputError, match="tells no position in the patient"):
        segmentation_of(drawn(planes, 1), planes, [LIVER], DRAWN, description="x")


@pytest.mark.parametrize("name", ["", "  ", "x" * 65, "a\\b"])
def test_names_that_dicom_cannot_hold_are_refused(name: str, tmp_path: Path) -> None:
    planes = stored(volume(2), tmp_path / "series")
    segment = Segment(name, BODY, LIVER.type, (1, 2, 3))
    with pytest.raises(InputError, match="cannot hold"):
        segmentation_of(drawn(planes, 1), planes, [segment], DRAWN, description="x")


def test_old_images_that_lack_attributes_can_be_referred_to(tmp_path: Path) -> None:
    slices = volume(3)
    for slice_ in slices:
        for name in ("AccessionNumber", "StudyID", "PatientBirthDate", "ReferringPhysicianName"):
            delattr(slice_, name)
        slice_.PatientSex = "U"
    planes = stored(slices, tmp_path / "series")
    assert segmentation_of(drawn(planes), planes, [LIVER, SPLEEN], DRAWN, description="x")


def made(planes: Planes, labels: NDArray[np.uint8]) -> Dataset:
    dataset = segmentation_of(labels, planes, [LIVER, SPLEEN], DRAWN, description="test")
    buffer = BytesIO()
    dataset.save_as(buffer, write_like_original=False)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def test_frames_may_be_left_out_and_come_in_any_order(tmp_path: Path) -> None:
    planes = stored(volume(6), tmp_path / "series")
    labels = drawn(planes)
    dataset = made(planes, labels)
    frames, groups = dataset.pixel_array, list(dataset.PerFrameFunctionalGroupsSequence)
    kept = [index for index in reversed(range(len(frames))) if frames[index].any()]
    assert len(kept) < len(frames)
    dataset.PerFrameFunctionalGroupsSequence = [groups[index] for index in kept]
    dataset.NumberOfFrames = len(kept)
    dataset.PixelData = np.packbits(frames[kept].ravel(), bitorder="little").tobytes()
    dataset._pixel_array = None
    assert np.array_equal(labels_on(dataset, planes.grid), labels)


def test_a_mirrored_segmentation_is_put_right(tmp_path: Path) -> None:
    planes = stored(volume(3), tmp_path / "series")
    labels = drawn(planes)
    dataset = made(planes, labels)
    frames = dataset.pixel_array[:, :, ::-1]
    width = (COLUMNS - 1) * planes.grid.spacing[0]
    orientation = [-1, 0, 0, 0, 1, 0]
    dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[
        0
    ].ImageOrientationPatient = orientation
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        place = groups.PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [f"{float(x) + width:.6f}", y, z]
    dataset.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
    dataset._pixel_array = None
    assert AXIAL[0] == -orientation[0]
    assert np.array_equal(labels_on(dataset, planes.grid), labels)


@pytest.mark.parametrize("shift", [(0.3, 0, 0), (0, 0, 1.2), (200, 0, 0)])
def test_a_segmentation_beside_the_image_is_refused(
    shift: tuple[float, ...], tmp_path: Path
) -> None:
    planes = stored(volume(4), tmp_path / "series")
    dataset = made(planes, drawn(planes))
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        place = groups.PlanePositionSequence[0]
        moved = np.array(place.ImagePositionPatient, float) + shift
        place.ImagePositionPatient = [f"{value:.6f}" for value in moved]
    with pytest.raises(InputError, match=r"does not lie on|reaches beyond"):
        labels_on(dataset, planes.grid)


def test_segments_that_overlap_are_refused(tmp_path: Path) -> None:
    planes = stored(volume(2), tmp_path / "series")
    dataset = made(planes, drawn(planes))
    ones = np.ones((int(dataset.NumberOfFrames), ROWS, COLUMNS), np.uint8)
    dataset.PixelData = np.packbits(ones.ravel(), bitorder="little").tobytes()
    dataset._pixel_array = None
    with pytest.raises(InputError, match="overlap"):
        labels_on(dataset, planes.grid)


def test_truncated_pixels_are_refused(tmp_path: Path) -> None:
    planes = stored(volume(4), tmp_path / "series")
    dataset = made(planes, drawn(planes))
    dataset.PixelData = dataset.PixelData[:20]
    dataset._pixel_array = None
    with pytest.raises(InputError, match="truncated"):
        labels_on(dataset, planes.grid)


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_an_input_error_or_read(tmp_path: Path) -> None:
    planes = stored(volume(4), tmp_path / "series")
    file, luck, refused = tmp_path / "seg.dcm", random.Random(1), 0
    made(planes, drawn(planes)).save_as(file, write_like_original=False)
    whole = file.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(luck.choice([1, 2, 5, 20])):
            place = luck.randrange(132, len(content))
            content[place] = luck.choice([0, 255, content[place] ^ (1 << luck.randrange(8))])
        file.write_bytes(content)
        try:
            dataset = read_segmentation_file(file)
            head_of(dataset)
            labels_on(dataset, planes.grid)
        except InputError:
            refused += 1
    assert 50 < refused < 300


def test_other_files_are_no_segmentations(tmp_path: Path) -> None:
    volume(1)[0].save_as(tmp_path / "a.dcm", write_like_original=False)
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    with pytest.raises(InputError, match="no segmentation"):
        read_segmentation_file(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="no DICOM"):
        read_segmentation_file(tmp_path / "b.dcm")


@needs_validator
@pytest.mark.parametrize("kind", SERIES)
@pytest.mark.parametrize("empty", [False, True])
def test_the_independent_validator_finds_no_error(kind: str, empty: bool, tmp_path: Path) -> None:
    planes = stored(SERIES[kind](), tmp_path / "series")
    labels = drawn(planes, 3) * (not empty)
    origin = Origin("ESP-MedSAM x", "1", corrected=True, person="Doe^Jane")
    dataset = segmentation_of(labels, planes, [LIVER, SPLEEN, LEFT], origin, description="ä")
    dataset.save_as(tmp_path / "seg.dcm", write_like_original=False)
    told = subprocess.run(
        ["dciodvfy", str(tmp_path / "seg.dcm")], capture_output=True, text=True, timeout=60
    )
    errors = [line for line in told.stderr.splitlines() if line.startswith("Error")]
    assert errors == []
