"""From folders of cases to the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import find_pairs, read_pair
from esp_medsam_app.evaluation.report import Oracle, evaluate_cases, write_report
from esp_medsam_app.modalities import Modality

LEFT_RIGHT = Modality(
    name="sides", title="", description="", dimension=2, labels={"left": 1, "right": 2}
)
ONE = Modality(name="one", title="", description="", dimension=2, labels={"blob": 1})


def case(folder: Path, stem: str, labels: NDArray[np.uint8], suffix: str = "png") -> None:
    """An image whose grey values are ten times its labels."""
    for part, array in (("images", labels * 10), ("labels", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        path = folder / part / f"{stem}.{suffix}"
        if suffix == "png":
            Image.fromarray(array).save(path)
        else:
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def sides() -> NDArray[np.uint8]:
    labels = np.zeros((12, 16), np.uint8)
    labels[3:9, 2:6], labels[3:9, 10:14] = 1, 2
    return labels


def perfect(image: MedicalImage) -> NDArray[np.uint8]:
    return (image.voxels // 10).astype(np.uint8)


def without_right(image: MedicalImage) -> NDArray[np.uint8]:
    labels = perfect(image)
    labels[labels == 2] = 0
    return labels


def test_report(tmp_path: Path) -> None:
    case(tmp_path, "b", sides())
    case(tmp_path, "a", sides())
    pairs = find_pairs([tmp_path])
    assert [pair.name for pair in pairs] == ["a", "b"]
    good = evaluate_cases(pairs, perfect, LEFT_RIGHT).to_json()
    assert good["dice"]["mean"] == 1
    assert good["hd95"]["mean"] == 0
    half = evaluate_cases(pairs, without_right, LEFT_RIGHT).to_json()
    assert half["dice"]["mean"] == 0.5
    assert half["dice"]["per_label"]["left"]["mean"] == 1
    assert half["dice"]["per_label"]["right"]["mean"] == 0
    assert half["hd95"]["per_label"]["right"]["mean"] is None
    assert half["hd95"]["per_label"]["right"]["missed"] == 2


def test_an_oracle_is_shown_the_reference(tmp_path: Path) -> None:
    case(tmp_path, "a", sides())
    shown: list[tuple[int, ...]] = []

    def from_reference(image: MedicalImage, reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
        shown.append(image.grid.shape)
        return np.where(reference == 1, 1, 0).astype(np.uint8)

    report = evaluate_cases(find_pairs([tmp_path]), Oracle(from_reference), LEFT_RIGHT)
    assert shown == [(16, 12)]
    assert report.summary("dice", "left").mean == 1
    assert report.summary("dice", "right").mean == 0


def test_rate_counts_slices_and_leaves_the_warm_up_out(tmp_path: Path) -> None:
    labels = np.zeros((10, 10, 8), np.uint8)
    labels[3:7, 3:7, 2:5] = 1
    case(tmp_path, "a", labels, "nii.gz")
    report = evaluate_cases(find_pairs([tmp_path]), perfect, ONE)
    assert report.cases[0].slices == 8
    first, second, third = (replace(report.cases[0], seconds=s) for s in (100.0, 2.0, 6.0))
    assert replace(report, cases=(first,)).slices_per_second == pytest.approx(0.08)
    assert replace(report, cases=(first, second, third)).slices_per_second == pytest.approx(2)


def test_json_is_what_the_readme_promises(tmp_path: Path) -> None:
    case(tmp_path / "data", "a", sides())
    report = evaluate_cases(find_pairs([tmp_path / "data"]), without_right, LEFT_RIGHT)

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    text = write_report(tmp_path / "out" / "report.json", report).read_text()
    content = json.loads(text, parse_constant=refuse)
    assert {"modality", "cases", "dice", "iou", "hd95", "per_case"} <= set(content)
    assert content["modality"] == "sides"
    assert content["cases"] == 1
    for metric in ("dice", "iou", "hd95"):
        assert {"mean", "std", "ci95", "per_label"} <= set(content[metric])
        assert set(content[metric]["per_label"]) == {"left", "right"}
    assert content["per_case"][0]["name"] == "a"
    assert content["per_case"][0]["dice"] == 0.5


def test_volumes_are_scored_in_mm_as_a_whole(tmp_path: Path) -> None:
    labels = np.zeros((10, 10, 8), np.uint8)
    labels[3:7, 3:7, 2:5] = 1
    case(tmp_path, "volume", labels, "nii.gz")

    def one_slice_lower(image: MedicalImage) -> NDArray[np.uint8]:
        return np.roll(perfect(image), -1, axis=2)

    report = evaluate_cases(find_pairs([tmp_path]), one_slice_lower, ONE)
    assert report.distance_unit == "mm"
    assert report.cases[0].hd95 == pytest.approx(3)
    assert report.cases[0].dice == pytest.approx(2 / 3)


def test_x_rays_are_scored_in_mm(tmp_path: Path) -> None:
    """An X-ray lies nowhere in the patient, but its pixels have a size: 0.2 mm wide, 0.5 high."""
    image = np.zeros((16, 12), np.uint8)
    image[4:9, 3:8] = 10
    for part, array in (("images", image), ("labels", image // 10)):
        (tmp_path / part).mkdir()
        picture = sitk.GetImageFromArray(array.T)
        picture.SetSpacing((0.2, 0.5))
        sitk.WriteImage(picture, str(tmp_path / part / "a.nrrd"))
    for axis, distance in ((0, 0.2), (1, 0.5)):

        def moved(picture: MedicalImage, axis: int = axis) -> NDArray[np.uint8]:
            return np.roll(perfect(picture), 1, axis)

        report = evaluate_cases(find_pairs([tmp_path]), moved, ONE)
        assert report.distance_unit == "mm"
        assert report.cases[0].hd95 == pytest.approx(distance)


def test_pictures_are_scored_in_pixels(tmp_path: Path) -> None:
    case(tmp_path, "a", sides())
    report = evaluate_cases(
        find_pairs([tmp_path]), lambda image: np.roll(perfect(image), 2, 1), LEFT_RIGHT
    )
    assert (report.distance_unit, report.cases[0].hd95) == ("px", 2)


def test_a_failing_case_is_raised_without_a_handler(tmp_path: Path) -> None:
    case(tmp_path, "a", sides())
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a\.png: not a picture"):
        evaluate_cases(find_pairs([tmp_path]), perfect, LEFT_RIGHT)


def test_white_masks_mean_the_only_label(tmp_path: Path) -> None:
    case(tmp_path, "a", (sides() == 1).astype(np.uint8))
    Image.fromarray(((sides() == 1) * 255).astype(np.uint8)).save(tmp_path / "labels" / "a.png")
    assert evaluate_cases(find_pairs([tmp_path]), perfect, ONE).summary("dice").mean == 1


def test_single_slice_of_a_viewer_fits_its_picture(tmp_path: Path) -> None:
    case(tmp_path, "a", (sides() == 1).astype(np.uint8))
    (tmp_path / "labels" / "a.png").unlink()
    volume = (sides() == 1).astype(np.uint8).T[..., np.newaxis]
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "labels" / "a.nii.gz")
    assert evaluate_cases(find_pairs([tmp_path]), perfect, ONE).summary("dice").mean == 1


def test_unknown_label_values(tmp_path: Path) -> None:
    case(tmp_path, "a", sides())
    with pytest.raises(InputError, match=r"no label for: 2.*0 for background and 1 = blob"):
        read_pair(find_pairs([tmp_path])[0], ONE)


def test_label_map_of_another_shape(tmp_path: Path) -> None:
    case(tmp_path, "a", sides())
    Image.fromarray(sides()[:, :8]).save(tmp_path / "labels" / "a.png")
    with pytest.raises(InputError, match=r"8 x 12 voxels, its image a\.png has 16 x 12"):
        read_pair(find_pairs([tmp_path])[0], LEFT_RIGHT)


def test_label_map_elsewhere_in_the_patient(tmp_path: Path) -> None:
    labels = np.zeros((5, 6, 4), np.uint8)
    labels[2, 2, 2] = 1
    case(tmp_path, "a", labels, "nii.gz")
    moved = nib.Nifti1Image(labels, np.diag([1.0, 1.0, 3.5, 1.0]))
    nib.save(moved, tmp_path / "labels" / "a.nii.gz")
    with pytest.raises(InputError, match="lies elsewhere"):
        read_pair(find_pairs([tmp_path])[0], ONE)


def test_folders_of_cases(tmp_path: Path) -> None:
    case(tmp_path / "x", "a", sides())
    case(tmp_path / "y", "a", sides())
    assert [pair.name for pair in find_pairs([tmp_path / "x", tmp_path / "y"])] == ["x_a", "y_a"]
    with pytest.raises(InputError, match="given twice"):
        find_pairs([tmp_path / "x", tmp_path / "x"])
    (tmp_path / "x" / "labels" / "a.png").unlink()
    with pytest.raises(InputError, match="no partner"):
        find_pairs([tmp_path / "x"])
    with pytest.raises(InputError, match="no `images/`"):
        find_pairs([tmp_path])
    with pytest.raises(InputError, match="no such folder"):
        find_pairs([tmp_path / "absent"])
