"""Label maps that viewers submit take the values of the model, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.fake_server import AFFINE, ORGANS, SPOTS, detail

from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.submitted_labels import (
    SubmittedLabels,
    match_name,
    modality_of_names,
    renumber,
    stored_names,
)

LUNGS = Modality(
    name="lungs", title="Lungs", description="Three.", dimension=2,
    labels={"heart": 1, "left_lung": 2, "right_lung": 3},
)  # fmt: skip
MODELS = {"esp_medsam_ct_organs": ORGANS, "esp_medsam_lungs": LUNGS, "esp_medsam_spots": SPOTS}
ROW = np.array([[0, 1, 2, 3]], np.uint8)


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., tuple[list[int], dict[str, Any], bool]]:
    """Submit values for the pixels of a picture; what is kept, its info, whether bytes changed."""
    image = tmp_path / "image.png"
    label = tmp_path / "label.png"

    def submit(values: list[int], **info: Any) -> tuple[list[int], dict[str, Any], bool]:
        Image.fromarray(np.zeros((1, len(values)), np.uint8)).save(image)
        Image.fromarray(np.array([values], np.uint8)).save(label)
        sent = label.read_bytes()
        with SubmittedLabels(lambda: MODELS)(label, image, info) as (kept, kept_info):
            return (
                [int(value) for value in np.asarray(Image.open(kept))[0]],
                kept_info,
                kept.read_bytes() != sent,
            )

    return submit


def listed(modality: Modality) -> list[dict[str, Any]]:
    return [{"name": name, "idx": value} for name, value in modality.labels.items()]


# --- by name -------------------------------------------------------------------------------------


@given(st.data())
def test_whatever_the_numbers_are_the_names_decide(data: st.DataObject) -> None:
    labels = LUNGS.labels
    values = data.draw(st.lists(st.integers(1, 300), min_size=3, max_size=3, unique=True))
    names = dict(zip(values, data.draw(st.permutations(list(labels))), strict=True))
    voxels = np.array(data.draw(st.lists(st.sampled_from([0, *values]), min_size=1)), np.uint16)
    result = renumber(voxels, names, labels)
    assert [labels[names[v]] if v else 0 for v in voxels.tolist()] == result.tolist()
    assert result.dtype == np.uint8


@pytest.mark.parametrize("name", ["left_lung", "Left Lung", "LEFT-LUNG", " left  lung "])
def test_spelling_does_not_matter(name: str) -> None:
    assert match_name(name, LUNGS.labels) == "left_lung"
    assert match_name("lung", LUNGS.labels) is None
    assert match_name("A b", {"A b": 1, "a_b": 2}) == "A b"
    assert match_name("a-B", {"A b": 1, "a_b": 2}) is None


def test_slicer_exports_one_segment_as_value_1(submit: Any) -> None:
    values, info, changed = submit([0, 1, 1], label_info=[{"name": "spleen"}])
    assert values == [0, 2, 2]
    assert changed
    assert info["label_info"] == listed(ORGANS)
    assert info["submitted_label_info"] == [{"name": "spleen"}]


def test_idx_is_the_value(submit: Any) -> None:
    told = [{"name": "Right lung", "idx": 2, "color": "red"}, {"name": "heart", "idx": 1}]
    values, info, _ = submit([0, 1, 2], label_info=told, model="esp_medsam_lungs", client_id="me")
    assert values == [0, 1, 3]
    assert (info["model"], info["client_id"]) == ("esp_medsam_lungs", "me")
    assert [entry["name"] for entry in info["label_info"]] == list(LUNGS.labels)
    assert info["label_info"][2] == {"name": "right_lung", "idx": 3, "color": "red"}


# Slicer's idx counts a segment `background` too, which it does not export: voxels are 1 and 2
SHIFTED = [{"name": "left_lung", "idx": 2}, {"name": "right_lung", "idx": 3}]


@pytest.mark.parametrize(
    ("told", "sent", "kept"),
    [
        (SHIFTED, [0, 1, 2], [0, 2, 3]),  # only the order explains a 1
        (SHIFTED, [0, 2, 3], [0, 2, 3]),  # only idx explains a 3
        (SHIFTED, [0, 2, 0], [0, 2, 0]),  # both do; idx gives the model's own values
        ([{"name": "heart", "idx": 2}, {"name": "left_lung", "idx": 4}], [0, 1], [0, 1]),
    ],
)
def test_idx_that_slicer_counts_otherwise(
    submit: Any, told: list[dict[str, Any]], sent: list[int], kept: list[int]
) -> None:
    assert submit(sent, label_info=told)[0] == kept


@pytest.mark.parametrize("model", ["esp_medsam_lungs", None])
def test_what_could_mean_either_is_refused(submit: Any, model: str | None) -> None:
    told = [{"name": "heart", "idx": 2}, {"name": "left_lung", "idx": 3}]
    with pytest.raises(InputError, match="value 2 is 'heart' by its idx, but 'left_lung'"):
        submit([0, 2], label_info=told, model=model)


def test_a_background_segment_is_background(submit: Any) -> None:
    told = [{"name": "Background"}, {"name": "heart"}, {"name": "left lung"}]
    assert submit([0, 1, 2, 3], label_info=told)[0] == [0, 0, 1, 2]


def test_names_and_values_that_cannot_be_told(submit: Any) -> None:
    two = [{"name": "heart"}, {"name": "knee"}]
    with pytest.raises(InputError, match=r"no label 'knee'.*heart, left_lung") as caught:
        submit([1, 2], label_info=two, model="esp_medsam_lungs")
    assert "Rename" in caught.value.remedy
    with pytest.raises(InputError, match="value 3, 7, for"):
        submit([1, 3, 7], label_info=two, model="esp_medsam_lungs")
    # not in use: nobody minds
    assert submit([0, 1], label_info=two, model="esp_medsam_lungs")[0] == [0, 1]
    with pytest.raises(InputError, match="value 1 is both 'heart' and 'knee'"):
        submit([1], label_info=[{"name": "heart", "idx": 1}, {"name": "knee", "idx": 1}])
    for bad in ("heart", [{"idx": 1}], [3], [{"name": "heart", "idx": "one"}], {"heart": 1}):
        with pytest.raises(InputError, match=r"params\.label_info"):
            submit([1], label_info=bad)


def test_without_a_model_the_only_modality_with_the_names(submit: Any) -> None:
    # Slicer sends the empty segments of all models too
    everything = [{"name": name} for m in MODELS.values() for name in m.labels]
    values, info, _ = submit([0, 4, 5], label_info=everything)
    assert values == [0, 2, 3]
    assert info["label_info"] == listed(LUNGS)
    assert modality_of_names({"spot", "heart"}, MODELS.values()) is None
    twin = ORGANS.model_copy(update={"name": "mr_organs"})
    assert modality_of_names({"liver"}, [ORGANS, twin]) is None
    assert modality_of_names({"liver", "background"}, [ORGANS, ORGANS]) == ORGANS


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"label_info": []},
        {"label_info": [{"name": "knee"}, {"name": "hip"}, {"name": "spot"}]},
        {"label_info": [{"name": "knee"}, {"name": "hip"}, {"name": "toe"}], "model": "other"},
    ],
)
def test_what_no_modality_knows_is_kept_as_it_came(
    submit: Any, info: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert submit([0, 3, 1], **info) == ([0, 3, 1], info, False)
    assert ("kept as it came" in caplog.text) == bool(info.get("label_info"))


def test_names_that_are_read_later_are_those_that_were_meant(submit: Any) -> None:
    told = [{"name": "knee", "idx": 2}, {"name": "hip", "idx": 3}]
    _, info, _ = submit([0, 1, 2], label_info=told)  # as Slicer shifts them
    assert stored_names(info) == {1: "knee", 2: "hip"}
    assert info["submitted_label_info"] == told
    assert stored_names({"params": {"label_names": {"liver": 1, "spleen": 2}}})[2] == "spleen"
    assert stored_names({}) == {}


def test_a_model_without_names(submit: Any) -> None:
    values, info, changed = submit([0, 2, 3], model="esp_medsam_lungs")
    assert (values, changed) == ([0, 2, 3], False)
    assert stored_names(info) == {1: "heart", 2: "left_lung", 3: "right_lung"}
    assert submit([0, 255], model="esp_medsam_spots")[0] == [0, 1]
    with pytest.raises(InputError, match="value 4, for which there is no name"):
        submit([0, 4], model="esp_medsam_lungs")


# --- files and grids -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_volumes_stay_on_their_grid_and_in_their_format(tmp_path: Path, suffix: str) -> None:
    image, label = tmp_path / "image.nii.gz", tmp_path / f"label{suffix}"
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[1, 2, 3] = 1
    nib.save(nib.Nifti1Image(voxels * 9, AFFINE), image)
    if suffix == ".nrrd":
        written = sitk.ReadImage(str(image)) // 9
        sitk.WriteImage(sitk.Cast(written, sitk.sitkUInt8), str(label))
    else:
        nib.save(nib.Nifti1Image(voxels, AFFINE), label)
    info = {"label_info": [{"name": "spleen"}]}
    with SubmittedLabels(lambda: MODELS)(label, image, info) as (kept, _):
        assert kept.name.endswith(suffix)
        array = sitk.ReadImage(str(kept))
        assert np.array_equal(sitk.GetArrayFromImage(array).T, voxels * 2)
        expected = sitk.ReadImage(str(image))
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert np.allclose(getattr(array, get)(), getattr(expected, get)()), get
    assert not kept.exists()


def test_a_picture_s_label_as_a_volume_of_one_slice(tmp_path: Path) -> None:
    image, label = tmp_path / "image.png", tmp_path / "label.nrrd"
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(image)
    sitk.WriteImage(sitk.GetImageFromArray(np.full((1, 3, 4), 1, np.uint8)), str(label))
    info = {"label_info": [{"name": "right_lung"}]}
    with SubmittedLabels(lambda: MODELS)(label, image, info) as (kept, _):
        read = sitk.ReadImage(str(kept))
        assert read.GetSize() == (4, 3, 1)
        assert set(sitk.GetArrayFromImage(read).ravel()) == {3}


def test_slicer_s_own_format_says_what_its_values_are(tmp_path: Path) -> None:
    image, label = tmp_path / "image.png", tmp_path / "label.seg.nrrd"
    Image.fromarray(np.zeros((1, 2), np.uint8)).save(image)
    written = sitk.GetImageFromArray(np.array([[[5, 7]]], np.uint8))
    for number, (name, value) in enumerate([("Spleen", 5), ("Liver", 7)]):
        written.SetMetaData(f"Segment{number}_Name", name)
        written.SetMetaData(f"Segment{number}_LabelValue", str(value))
    sitk.WriteImage(written, str(label))
    # the plug-in numbers the segments by their order all the same
    info = {"label_info": [{"name": "Spleen", "idx": 1}, {"name": "Liver", "idx": 2}]}
    with SubmittedLabels(lambda: MODELS)(label, image, info) as (kept, _):
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(kept))).ravel().tolist() == [2, 1]


def test_a_segmentation_that_slicer_cropped_is_kept_whole(tmp_path: Path) -> None:
    """Whoever reads it next knows nothing of the image."""
    voxels = np.zeros((5, 6, 7), np.int16)
    voxels[1:3, 2:4, 3] = 9
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin((4, 5, 6))
    image.SetSpacing((2, 1, 3))
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    part = sitk.Cast(image[3:4, 2:4, 1:3] == 9, sitk.sitkUInt8)
    part.SetMetaData("Segment0_Name", "Spleen")
    part.SetMetaData("Segment0_LabelValue", "1")
    sitk.WriteImage(part, str(tmp_path / "label.seg.nrrd"))
    given = tmp_path / "label.seg.nrrd", tmp_path / "image.nrrd", {}
    with SubmittedLabels(lambda: MODELS)(*given) as (kept, info):
        read = sitk.ReadImage(str(kept))
        # the spleen is the model's second label
        assert np.array_equal(sitk.GetArrayFromImage(read), 2 * (voxels == 9))
        assert read.GetOrigin() == image.GetOrigin()
        assert read.GetSpacing() == image.GetSpacing()
    assert info["modality"] == "ct_organs"


def slicer_segmentation(folder: Path, studies: Path, value: str) -> Path:
    """The liver of `case` as Slicer saves it, its label value said to be `value`."""
    label = folder / "label.seg.nrrd"
    image = sitk.ReadImage(str(studies / "case.nii.gz"))
    written = sitk.Cast(image == 100, sitk.sitkUInt8)
    written.CopyInformation(image)
    written.SetMetaData("Segment0_Name", "Liver")
    written.SetMetaData("Segment0_LabelValue", value)
    sitk.WriteImage(written, str(label))
    return label


@pytest.mark.parametrize("value", ["x", "", "-1", "1.5", "9" * 5000])
def test_slicer_s_own_format_with_damaged_numbers(
    client: TestClient, tmp_path: Path, studies: Path, value: str
) -> None:
    label = slicer_segmentation(tmp_path, studies, value or " ")
    response = put(client, label)
    assert response.status_code == 422
    assert "'Liver'" in detail(response)
    assert "no number" in detail(response)
    assert [path for path in (studies / "labels").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("damage", [(b"Liver", b"Li\xffer"), (b"Segment0_", b"Segment\xff_")])
def test_slicer_s_own_format_with_what_is_no_text(
    client: TestClient, tmp_path: Path, studies: Path, damage: tuple[bytes, bytes]
) -> None:
    """Half a character that is kept could never be sent again."""
    label = slicer_segmentation(tmp_path, studies, "1")
    whole = label.read_bytes()
    assert damage[0] in whole
    label.write_bytes(whole.replace(*damage))
    response = put(client, label)
    assert response.status_code in (200, 422), response.text
    assert client.get("/datastore/?output=all").status_code == 200


def test_an_image_that_cannot_be_read_does_not_cost_the_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    image.write_bytes(b"no image")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), AFFINE), label)
    info = {"label_info": [{"name": "spleen"}]}
    with SubmittedLabels(lambda: MODELS)(label, image, info) as (kept, _):
        assert np.asarray(nib.load(kept).dataobj).max() == 2
    assert "not compared" in caplog.text


# --- through MONAI Label's endpoints -------------------------------------------------------------


def put(client: TestClient, path: Path, image: str = "case", **params: Any) -> Any:
    with path.open("rb") as file:
        return client.put(
            "/datastore/label",
            params={"image": image},
            data={"params": json.dumps(params)},
            files={"label": (str(path), file)},
        )


@pytest.fixture
def spleen(tmp_path: Path, organs: np.ndarray) -> Path:
    """The spleen of `case` as Slicer exports it: value 1."""
    path = tmp_path / "tmp abc.nii.gz"
    nib.save(nib.Nifti1Image((organs == 200).astype(np.uint8), AFFINE), path)
    return path


def test_a_submitted_label_is_never_swapped(
    client: TestClient, spleen: Path, organs: np.ndarray, studies: Path
) -> None:
    response = put(client, spleen, label_info=[{"name": "Spleen", "idx": 1}], client_id="slicer")
    assert response.status_code == 200, response.text
    kept = nib.load(studies / "labels" / "final" / "case.nii.gz")
    assert np.array_equal(np.asarray(kept.dataobj), np.where(organs == 200, 2, 0))
    info = client.get("/datastore/label/info", params={"label": "case", "tag": "final"}).json()
    assert info["label_info"] == listed(ORGANS)
    assert info["client_id"] == "slicer"


def test_a_label_that_is_right_already_is_kept_byte_by_byte(
    client: TestClient, spleen: Path, studies: Path
) -> None:
    assert put(client, spleen, label_info=[{"name": "liver"}]).status_code == 200
    kept = studies / "labels" / "final" / "case.nii.gz"
    assert kept.read_bytes() == spleen.read_bytes()


def test_bad_labels_are_refused_and_the_old_one_stays(
    client: TestClient, spleen: Path, studies: Path, tmp_path: Path
) -> None:
    put(client, spleen, label_info=[{"name": "liver"}])
    kept = studies / "labels" / "final" / "case.nii.gz"
    before = kept.read_bytes()
    bad = tmp_path / "bad.nii.gz"
    cases: list[tuple[bytes | np.ndarray, dict[str, Any], str]] = [
        (spleen.read_bytes()[:60], {}, "the submitted label map: "),
        (b"", {}, "empty"),
        (np.ones((6, 5, 3), np.uint8), {}, "label map has 6 x 5 x 3 voxels"),
        (np.full((6, 5, 4), 0.5, np.float32), {}, "fractions"),
        (np.ones((6, 5, 4), np.uint8), {"label_info": [{"name": "knee"}],
                                        "model": "esp_medsam_ct_organs"}, "no label 'knee'"),
    ]  # fmt: skip
    for content, params, told in cases:
        if isinstance(content, bytes):
            bad.write_bytes(content)
        else:
            nib.save(nib.Nifti1Image(content, AFFINE), bad)
        response = put(client, bad, **params)
        assert response.status_code == 422, told
        assert told in detail(response)
        assert "/tmp" not in detail(response)
        assert kept.read_bytes() == before
    text = tmp_path / "label.json"
    text.write_text("{}")
    assert put(client, text).status_code == 422
    assert kept.read_bytes() == before


def test_what_the_server_drew_itself_is_marked(client: TestClient) -> None:
    client.post(
        "/infer/esp_medsam_ct_organs",
        params={"image": "case", "output": "image"},
        data={"params": json.dumps({"save_label": True})},
    )
    info = client.get("/datastore/label/info", params={"label": "case", "tag": "original"}).json()
    assert info["predicted"] is True
    assert stored_names(info) == {1: "liver", 2: "spleen"}
