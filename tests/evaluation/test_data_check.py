"""Each kind of defect in tiny real folders, and what must not be taken for one."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from support.dicom_series import write_series

from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.data_check import DataReport, check_data
from esp_medsam_app.evaluation.data_check.fingerprint import Fingerprint, _bits, find_alike
from esp_medsam_app.evaluation.splits import patient_pattern
from esp_medsam_app.modalities import Intensity, Modality

ONE = Modality(name="one", title="", description="", dimension=2, labels={"blob": 1})
SIDES = Modality(
    name="sides", title="", description="", dimension=2, labels={"left": 1, "right": 2}
)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def texture(seed: int, shape: tuple[int, ...] = (64, 80), low: int = 0) -> NDArray[np.uint8]:
    """Smooth structure that no other seed has, from `low` to 255."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    unit = (noise - noise.min()) / np.ptp(noise)
    return (low + (255 - low) * unit).astype(np.uint8)


def blob(side: int = 16, shape: tuple[int, int] = (64, 80), value: int = 1) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    labels[10 : 10 + side, 20 : 20 + side] = value
    return labels


def save(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Path:
    """Pictures as `[row, column]`, NIfTI as `[x, y, z]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, affine), path)
    else:
        Image.fromarray(array).save(path)
    return path


def case(
    folder: Path, name: str, image: NDArray[Any], label: NDArray[Any], suffix: str = ".png"
) -> None:
    save(folder / "images" / f"{name}{suffix}", image)
    save(folder / "labels" / f"{name}{'.nii.gz' if suffix == '.nii.gz' else '.png'}", label)


def good(folder: Path, count: int = 2, start: int = 0) -> Path:
    for seed in range(start, start + count):
        case(folder, f"good{seed}", texture(seed), blob())
    return folder


def check(modality: Modality = ONE, pattern: str | None = None, **splits: Path) -> DataReport:
    return check_data(
        {split: [folder] for split, folder in splits.items()},
        modality,
        None if pattern is None else patient_pattern(pattern),
    )


def kinds(report: DataReport) -> dict[str, int]:
    return dict(Counter(finding.kind for finding in report.findings))


def only(report: DataReport) -> Any:
    (finding,) = report.findings
    return finding


# ---- clean data


def test_clean_data_and_its_counts(tmp_path: Path) -> None:
    good(tmp_path / "a", 2)
    good(tmp_path / "b", 1, start=2)
    volume = np.zeros((20, 20, 8), np.uint8)
    volume[5:15, 5:15, 2:4] = 1
    voxels = np.moveaxis(texture(9, (8, 20, 20)), 0, 2)
    case(tmp_path / "b", "volume", voxels, volume, ".nii.gz")
    seen: list[tuple[int, int]] = []
    report = check_data(
        {"train": [tmp_path / "a", tmp_path / "b"]}, ONE, None, lambda *done: seen.append(done)
    )
    assert report.findings == ()
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    train = report.splits["train"]
    assert (train.cases, train.slices) == (4, 11)
    assert (train.labels["blob"].cases, train.labels["blob"].slices) == (4, 5)
    areas = [16 * 16 / (64 * 80)] * 3 + [10 * 10 / (20 * 20)] * 2
    assert train.labels["blob"].mean_area == pytest.approx(np.mean(areas))


def test_a_mask_of_0_and_255_is_fine(tmp_path: Path) -> None:
    case(tmp_path, "a", texture(0), blob(value=255))
    assert check(train=tmp_path).findings == ()


def test_report_as_json(tmp_path: Path) -> None:
    good(tmp_path)
    (tmp_path / "labels" / "good0.png").unlink()
    report = check(train=tmp_path)
    report.write(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["modality"], content["errors"], content["warnings"]) == ("one", 1, 0)
    assert content["splits"]["train"]["cases"] == 1
    assert content["splits"]["train"]["labels"]["blob"]["mean_area"] == pytest.approx(0.05)
    assert content["findings"] == [
        {
            "severity": "error",
            "kind": "pair",
            "split": "train",
            "path": str(tmp_path / "images" / "good0.png"),
            "problem": "this image has no partner of the same name in `labels/`",
            "remedy": "Add `labels/good0.*` or remove it",
        }
    ]


def test_a_folder_of_two_splits(tmp_path: Path) -> None:
    good(tmp_path / "a")
    with pytest.raises(InputError, match="given twice, as 'train' and as 'test'"):
        check(train=tmp_path / "a", test=tmp_path / "b" / ".." / "a")


# ---- pairs


def test_files_without_partner_and_doubles_are_all_told(tmp_path: Path) -> None:
    good(tmp_path, 4)
    (tmp_path / "images" / "good0.png").unlink()
    (tmp_path / "labels" / "good1.png").unlink()
    save(tmp_path / "images" / "good2.bmp", texture(2))
    (tmp_path / "images" / "notes.txt").write_text("x")
    (tmp_path / "images" / ".hidden").write_text("x")
    report = check(train=tmp_path)
    assert {finding.path.name for finding in report.errors} == {
        "good0.png", "good1.png", "good2.png",
    }  # fmt: skip
    assert [finding.path.name for finding in report.warnings] == ["notes.txt"]
    assert report.splits["train"].cases == 2


def test_folders_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "half" / "images").mkdir(parents=True)
    for part in ("images", "labels"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    report = check(
        train=good(tmp_path / "a"),
        val=tmp_path / "half",
        test=tmp_path / "none",
        unseen=tmp_path / "empty",
    )
    problems = [(finding.split, finding.problem) for finding in report.errors]
    assert problems == [
        ("val", "the folder has no `labels/`"),
        ("test", "there is no such folder"),
        ("unseen", "the folder holds no whole case"),
    ]


def test_every_unreadable_file_is_told_both_of_one_case_too(tmp_path: Path) -> None:
    good(tmp_path, 4)
    for file in ("images/good0.png", "labels/good0.png", "labels/good1.png"):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "good2.png").write_bytes(b"")
    report = check(train=tmp_path)
    assert kinds(report) == {"unreadable": 4}
    assert len(report.errors) == 4
    assert len({finding.path for finding in report.errors}) == 4
    assert report.splits["train"].cases == 1


def test_shapes_that_differ(tmp_path: Path) -> None:
    good(tmp_path)
    case(tmp_path, "a", texture(5), blob(shape=(80, 64)))
    report = check(train=tmp_path)
    assert report.splits["train"].cases == report.splits["train"].labels["blob"].cases == 2
    finding = only(report)
    assert (finding.severity, finding.kind, finding.path.name) == ("error", "pair", "a.png")
    assert "64 x 80 voxels, its image a.png has 80 x 64" in finding.problem


def test_places_that_differ(tmp_path: Path) -> None:
    voxels, labels = texture(0, (30, 30, 6)), np.zeros((30, 30, 6), np.uint8)
    labels[8:20, 8:20, 2:4] = 1
    save(tmp_path / "images" / "a.nii.gz", voxels)
    moved = AFFINE.copy()
    moved[:3, 3] = 40
    save(tmp_path / "labels" / "a.nii.gz", labels, moved)
    finding = only(check(train=tmp_path))
    assert (finding.severity, finding.kind) == ("error", "pair")
    assert "lies elsewhere in the patient" in finding.problem


# ---- labels


def test_values_without_label_and_fractions(tmp_path: Path) -> None:
    good(tmp_path, 1)
    case(tmp_path, "a", texture(5), blob(value=7))
    labels = np.zeros((30, 30, 6), np.float32)
    labels[8:20, 8:20, 2:4] = 0.5
    case(tmp_path, "b", texture(6, (30, 30, 6)), labels, ".nii.gz")
    report = check(train=tmp_path)
    assert kinds(report) == {"label values": 2}
    assert len(report.errors) == 2
    problems = {finding.path.name: finding for finding in report.errors}
    assert "has no label for: 7" in problems["a.png"].problem
    assert "1 = blob" in problems["a.png"].remedy
    assert "fractions" in problems["b.nii.gz"].problem


def test_a_label_that_a_split_does_not_have(tmp_path: Path) -> None:
    both = blob()
    both[40:50, 40:50] = 2
    case(tmp_path / "train", "a", texture(0), both)
    case(tmp_path / "train", "b", texture(1), blob())
    case(tmp_path / "test", "c", texture(2), blob())
    finding = only(check(SIDES, train=tmp_path / "train", test=tmp_path / "test"))
    assert (finding.severity, finding.kind, finding.split) == ("error", "missing label", "test")
    assert "marks right (2)" in finding.problem


def test_an_empty_label_map_is_for_a_person_to_judge(tmp_path: Path) -> None:
    case(good(tmp_path), "a", texture(5), np.zeros((64, 80), np.uint8))
    finding = only(check(train=tmp_path))
    assert (finding.severity, finding.kind, finding.path.name) == (
        "warning", "empty label map", "a.png",
    )  # fmt: skip


# ---- suspicious cases


def test_a_constant_image(tmp_path: Path) -> None:
    case(good(tmp_path), "a", np.full((64, 80), 7, np.uint8), blob())
    finding = only(check(train=tmp_path))
    assert (finding.severity, finding.kind, finding.path) == (
        "warning", "constant image", tmp_path / "images" / "a.png",
    )  # fmt: skip


def test_constant_images_are_no_leak(tmp_path: Path) -> None:
    case(good(tmp_path / "a"), "a", np.full((64, 80), 7, np.uint8), blob())
    case(good(tmp_path / "b", start=5), "b", np.full((64, 80), 7, np.uint8), blob())
    report = check(train=tmp_path / "a", test=tmp_path / "b")
    assert kinds(report) == {"constant image": 2}


@pytest.mark.parametrize("hole", [0, 6])
def test_a_label_that_covers_all(tmp_path: Path, hole: int) -> None:
    labels = 1 - blob(hole)
    case(good(tmp_path), "a", texture(5), labels)
    assert kinds(check(train=tmp_path)) == {"covers all": 1}


def test_a_label_that_reaches_every_border(tmp_path: Path) -> None:
    """The background marked by mistake; but many parts at the borders are many parts."""
    inverted = 1 - blob(40)
    case(good(tmp_path), "a", texture(5), inverted)
    four = np.zeros((64, 80), np.uint8)
    four[:8, 30:40] = four[-8:, 30:40] = four[30:40, :8] = four[30:40, -8:] = 1
    case(tmp_path, "b", texture(6), four)
    finding = only(check(train=tmp_path))
    assert (finding.kind, finding.path.name) == ("touches all borders", "a.png")


@pytest.mark.parametrize(("side", "word"), [(2, "64 times smaller"), (48, "9.0 times larger")])
def test_an_unusual_size(tmp_path: Path, side: int, word: str) -> None:
    good(tmp_path, 14)
    case(tmp_path, "a", texture(50), blob(side))
    finding = only(check(train=tmp_path))
    assert (finding.severity, finding.kind, finding.path.name) == (
        "warning", "unusual size", "a.png",
    )  # fmt: skip
    assert word in finding.problem


def test_sizes_that_differ_by_nature_are_not_told(tmp_path: Path) -> None:
    for seed, side in enumerate([6, 8, 8, 10, 12, 14, 16, 18, 20, 24, 28, 34, 40, 48]):
        case(tmp_path, str(seed), texture(seed), blob(side))
    assert check(train=tmp_path).findings == ()


def test_specks_of_a_structure_of_one_part(tmp_path: Path) -> None:
    """A pixel that touches the structure with its corner belongs to it."""
    labels = blob(40)
    labels[2, 2] = labels[60, 70] = labels[9, 19] = 1
    case(good(tmp_path), "a", texture(5), labels)
    finding = only(check(train=tmp_path))
    assert (finding.severity, finding.kind, finding.path.name) == ("warning", "specks", "a.png")
    assert "2 tiny specks" in finding.problem


def test_specks_in_all_cases(tmp_path: Path) -> None:
    labels = blob(40)
    labels[2, 2:40:4] = 1
    for seed in range(3):
        case(tmp_path, str(seed), texture(seed), labels)
    assert kinds(check(train=tmp_path)) == {"specks": 3}


def test_small_parts_of_nuclei_are_no_specks(tmp_path: Path) -> None:
    labels = np.zeros((64, 80), np.uint8)
    for row in range(4, 60, 20):
        labels[row : row + 15, 5:75] = 1
    labels[0, 0] = 1
    for seed in range(3):
        case(tmp_path, str(seed), texture(seed), labels)
    assert check(train=tmp_path).findings == ()


# ---- leaks


def leaks(tmp_path: Path, copy: NDArray[Any], name: str, **options: Any) -> DataReport:
    """`texture(3)` is in train, its copy alone in test."""
    case(good(tmp_path / "train", 3), "original", texture(3), blob())
    path = tmp_path / "test" / "images" / name
    path.parent.mkdir(parents=True)
    Image.fromarray(copy).save(path, **options)
    labels = np.zeros(copy.shape[:2], np.uint8)
    labels[5:25, 5:25] = 1
    save(tmp_path / "test" / "labels" / f"{path.stem}.png", labels)
    return check(train=tmp_path / "train", test=tmp_path / "test")


@pytest.mark.parametrize("name", ["other.png", "other.bmp", "other.tif"])
def test_the_same_image_under_another_name_and_format(tmp_path: Path, name: str) -> None:
    finding = only(leaks(tmp_path, texture(3), name))
    assert (finding.severity, finding.kind, finding.split) == ("error", "same image", "test")
    assert finding.path == tmp_path / "test" / "images" / name
    assert str(tmp_path / "train" / "images" / "original.png") in finding.problem


def test_the_same_grey_values_as_rgb_and_in_16_bit(tmp_path: Path) -> None:
    grey = texture(3)
    assert only(leaks(tmp_path / "a", np.stack([grey] * 3, -1), "c.png")).kind == "same image"
    assert only(leaks(tmp_path / "b", grey.astype(np.uint16), "c.png")).kind == "same image"


@pytest.mark.parametrize(
    "change",
    ["jpeg", "mirrored", "upside down", "turned", "scaled", "stretched", "darker", "colour"],
)
def test_near_duplicates(tmp_path: Path, change: str) -> None:
    copy = texture(3)
    picture = Image.fromarray(copy)
    copy = {
        "jpeg": copy,
        "mirrored": copy[:, ::-1],
        "upside down": copy[::-1],
        "turned": np.rot90(copy),
        "scaled": np.asarray(picture.resize((56, 45), Image.Resampling.BILINEAR)),
        "stretched": np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)),
        "darker": (20 + copy * 0.5).astype(np.uint8),
        "colour": np.stack([copy, (copy * 0.6).astype(np.uint8), copy // 3], -1),
    }[change]
    finding = only(leaks(tmp_path, np.ascontiguousarray(copy), "copy.jpg", quality=60))
    assert (finding.severity, finding.kind, finding.split) == ("error", "near duplicate", "test")
    assert "train/images/original.png" in finding.problem


def test_an_exact_copy_is_told_once_even_if_there_are_more_originals(tmp_path: Path) -> None:
    train, val, test = tmp_path / "train", tmp_path / "val", tmp_path / "test"
    case(train, "a", texture(3), blob())
    case(val, "b", texture(3)[:, ::-1], blob())
    case(test, "c", texture(3), blob())
    report = check(train=train, val=val, test=test)
    assert [(finding.kind, finding.split) for finding in report.errors] == [
        ("near duplicate", "val"), ("same image", "test"),
    ]  # fmt: skip


def test_doubles_within_a_split_are_a_warning(tmp_path: Path) -> None:
    good(tmp_path)
    case(tmp_path, "x", texture(1), blob())
    case(tmp_path, "y", texture(1), blob(18))
    case(tmp_path, "z", texture(1)[::-1], blob())
    report = check(train=tmp_path)
    assert report.errors == []
    found = [
        (finding.path.name, "another label map" in finding.problem) for finding in report.warnings
    ]
    assert found == [("x.png", False), ("y.png", True)]


def scan(seed: int) -> NDArray[np.uint8]:
    """`[x, y, z]`, nothing in the first and the last slice."""
    voxels = np.moveaxis(texture(seed, (9, 48, 40)), 0, 2).copy()
    voxels[..., [0, -1]] = 0
    return voxels


@pytest.mark.parametrize("change", ["rescaled", "left-right", "slices reversed", "picture"])
def test_near_duplicates_of_volumes(tmp_path: Path, change: str) -> None:
    labels = np.zeros((48, 40, 9), np.uint8)
    labels[10:30, 10:30, 2:6] = 1
    for seed in range(3):
        case(tmp_path / "train", f"v{seed}", scan(seed), labels, ".nii.gz")
    volume = scan(1)
    if change == "rescaled":
        case(tmp_path / "test", "copy", volume.astype(np.float32) * 3.7 - 100, labels, ".nii.gz")
    elif change == "left-right":
        case(tmp_path / "test", "copy", volume[::-1], labels, ".nii.gz")
    elif change == "slices reversed":
        case(tmp_path / "test", "copy", volume[..., ::-1], labels, ".nii.gz")
    else:
        case(tmp_path / "test", "copy", volume[..., 7].T, labels[..., 4].T)
    case(tmp_path / "test", "own", scan(7), labels, ".nii.gz")
    finding = only(check(train=tmp_path / "train", test=tmp_path / "test"))
    assert (finding.kind, finding.path.name.split(".")[0]) == ("near duplicate", "copy")
    assert "v1.nii.gz" in finding.problem


def test_neighbours_within_a_split_are_no_leak(tmp_path: Path) -> None:
    for index in range(1, 6):
        case(tmp_path, str(index), scan(0)[..., index].T, blob(shape=(40, 48)))
        case(
            tmp_path,
            f"{index}a",
            (scan(0)[..., index].T * 0.9).astype(np.uint8),
            blob(shape=(40, 48)),
        )
    assert check(train=tmp_path).findings == ()


def test_other_patients_of_the_same_anatomy_are_no_leak(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :80]
    body = ((rows - 32) / 28) ** 2 + ((columns - 40) / 36) ** 2 < 1
    for seed in range(40):
        image = np.where(body, 60 + texture(seed) // 2, 0).astype(np.uint8)
        case(tmp_path / ("train" if seed % 2 else "test"), str(seed), image, blob())
    assert check(train=tmp_path / "train", test=tmp_path / "test").findings == ()


@pytest.mark.parametrize("kind", ["dark", "flat", "marker"])
def test_dark_and_flat_images_do_not_all_look_alike(tmp_path: Path, kind: str) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 2, (64, 80), dtype=np.uint8)
        if kind == "flat":
            image += 120
        if kind == "marker":
            image[4:10, 60:74] = 255
        case(tmp_path / ("train" if seed % 2 else "test"), str(seed), image, blob())
    assert check(train=tmp_path / "train", test=tmp_path / "test").findings == ()


def dicom(folder: Path, name: str, seed: int, patient: str) -> None:
    series = folder / "images" / name
    write_series(series, scan(seed).astype(np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]), [*range(9)])
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientID = patient
        dataset.save_as(file)
    labels = np.zeros((48, 40, 9), np.uint8)
    labels[10:30, 10:30, 2:6] = 1
    save(folder / "labels" / f"{name}.nii.gz", labels, np.diag([-1.0, -1.0, 3.0, 1.0]))


def test_a_patient_of_two_splits_by_dicom(tmp_path: Path) -> None:
    for index, (split, patient) in enumerate(
        [("train", "A"), ("train", "A"), ("train", "B"), ("test", "C"), ("test", "B")]
    ):
        dicom(tmp_path / split, f"s{index}", index, patient)
    finding = only(check(train=tmp_path / "train", test=tmp_path / "test"))
    assert (finding.severity, finding.kind, finding.path.name) == ("error", "same patient", "s4")
    assert "patient B is in 'train' too" in finding.problem
    assert str(tmp_path / "train" / "images" / "s2") in finding.problem


def test_anonymous_dicom_is_not_one_patient(tmp_path: Path) -> None:
    dicom(tmp_path / "train", "a", 0, "ANONYMOUS")
    dicom(tmp_path / "test", "b", 1, "ANONYMOUS")
    assert check(train=tmp_path / "train", test=tmp_path / "test").findings == ()


def test_a_patient_of_two_splits_by_name(tmp_path: Path) -> None:
    case(tmp_path / "train", "p1_left", texture(0), blob())
    case(tmp_path / "train", "p2_left", texture(1), blob())
    case(tmp_path / "test", "p2_right", texture(2), blob())
    case(tmp_path / "test", "p22_left", texture(3), blob())
    splits = {"train": tmp_path / "train", "test": tmp_path / "test"}
    assert check(**splits).findings == ()
    finding = only(check(pattern=r"^(p\d+)_", **splits))
    assert (finding.kind, finding.path.name) == ("same patient", "p2_right.png")
    report = check(pattern=r"^(p\d)_", **splits)
    assert kinds(report) == {"same patient": 1, "no patient": 1}
    assert "1 of 2 images" in report.warnings[0].problem


# ---- fingerprints


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
def test_counted_bits(words: list[int]) -> None:
    found = _bits(np.array(words, np.uint64))
    assert found.tolist() == [bin(word).count("1") for word in words]


def fingerprint(image: NDArray[np.generic]) -> Fingerprint:
    return Fingerprint.of(image[np.newaxis], Intensity())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    turns=st.integers(0, 3),
    mirrored=st.booleans(),
    width=st.integers(48, 160),
    height=st.integers(48, 160),
    quality=st.integers(50, 95),
)
def test_a_copy_is_found_in_every_orientation(
    seed: int, turns: int, mirrored: bool, width: int, height: int, quality: int
) -> None:
    original = texture(seed, (96, 96), low=40)
    copy = np.rot90(original[:, ::-1] if mirrored else original, turns)
    file = io.BytesIO()
    size = (width, height)
    Image.fromarray(np.ascontiguousarray(copy)).resize(size, Image.Resampling.BILINEAR).save(
        file, "JPEG", quality=quality
    )
    prints = [fingerprint(original), fingerprint(np.asarray(Image.open(file)))]
    other = fingerprint(texture(seed + 1, (96, 96)))
    found = find_alike([prints[0], other, prints[1]], ["train", "train", "test"])
    assert [(alike.first, alike.second) for alike in found] == [(0, 2)]
    assert find_alike(prints, ["train", "train"]) == []


def test_a_windowed_picture_of_a_ct_slice_is_found() -> None:
    """In CT air and metal would hide the organs that the picture's window shows."""
    units = texture(0, (96, 96)).astype(np.int16) - 60
    units[:, :20], units[40:44, 60:64] = -1000, 3000
    picture = np.clip(units + 20, 0, 255).astype(np.uint8)
    window = Intensity(kind="window", low=-20, high=200)
    prints = [Fingerprint.of(image[np.newaxis], window) for image in (units, picture)]
    assert len(find_alike(prints, ["train", "test"])) == 1
