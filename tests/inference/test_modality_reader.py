"""Reading the modality: tags first, then looks, and asking where neither suffices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import bundle_of
from support.dicom_series import write_series

from esp_medsam_app.data.dicom import series_tags
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError, OtherModalityError, OutOfMemoryError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.image_features import features_of, middle_slices, tiles_of
from esp_medsam_app.inference.modality_reader import ModalityReading, mistaken_for, read_modality
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.classifier_file import save_classifier
from esp_medsam_app.weights.modality_classifier import ClassifierDescription, ModalityClassifier


def modality(name: str, *kinds: str, parts: str = "", wider: str = "") -> Modality:
    return Modality(
        name=name, title="", description="", dimension=3, labels={name: 1}, dicom_modalities=kinds,
        body_parts=tuple(parts.split()), wider_body_parts=tuple(wider.split()),
    )  # fmt: skip


ALL = {
    m.name: m
    for m in (
        modality("liver", "CT", parts="LIVER ABDOMEN CHESTABDPELVIS", wider="CHEST"),
        modality("atrium", "MR", parts="HEART"),
        modality("ventricle", "MR", parts="HEART"),
        modality("temporal", "MR", parts="HIPPOCAMPUS", wider="BRAIN"),
        modality("lesion", "XC", "OT"),
    )
}
CLASSIFIER = ClassifierDescription(modalities=list(ALL), side=64, sharpness=5, threshold=0.8)


def image(
    kind: str | None = None, part: str | None = None, text: str | None = None
) -> MedicalImage:
    voxels = np.arange(64, dtype=np.int16).reshape(8, 8)
    return MedicalImage(voxels, Grid((8, 8), np.eye(4)), None, kind, part, text)


def read(given: MedicalImage, looks: Mapping[str, float] | None = None) -> ModalityReading:
    """The reading of an image whose looks give these probabilities; they must not be needed."""

    def look(seen: MedicalImage) -> Mapping[str, float]:
        assert looks is not None, "the image need not be looked at"
        assert seen is given
        rest = dict.fromkeys(ALL, 0.0) | dict(looks)
        return dict(sorted(rest.items(), key=lambda item: -item[1]))

    return read_modality(given, ALL, CLASSIFIER, look)


@pytest.mark.parametrize(
    ("kind", "part", "text", "expected"),
    [
        ("CT", "ABDOMEN", None, "liver"),
        ("CT", "Chest/Abd/Pelvis", None, "liver"),
        ("CT", None, "CT Abdomen with contrast; axial", "liver"),
        (" ct ", "abdomen", None, "liver"),
        ("MR", "HIPPOCAMPUS", None, "temporal"),
    ],
)
def test_tags_that_name_kind_and_part_decide(
    kind: str, part: str | None, text: str | None, expected: str
) -> None:
    reading = read(image(kind, part, text))
    assert (reading.name, reading.source, reading.confidence) == (expected, "dicom", 1.0)


@pytest.mark.parametrize(
    ("kind", "part", "text", "told"),
    [
        ("CT", "HEAD", None, "CT of HEAD"),
        ("MG", None, None, "MG"),
        ("MR", "KNEE", None, "MR of KNEE"),
        ("CT", None, "ct head w/o contrast", "CT of HEAD"),
    ],
)
def test_tags_that_no_modality_is_for_are_not_guessed(
    kind: str, part: str | None, text: str | None, told: str
) -> None:
    """Not even looked at: the looks of a head in CT may well be those of a liver."""
    reading = read(image(kind, part, text))
    assert reading.name is None
    with pytest.raises(InputError, match=f"DICOM says {told}: none of the modalities"):
        reading.decided(image(), "Give --modality")


def test_kind_alone_needs_the_looks_too() -> None:
    liver = read(image("CT"), {"liver": 0.9, "lesion": 0.1})
    assert (liver.name, liver.source, liver.confidence) == ("liver", "dicom", 0.9)
    head = read(image("CT"), {"temporal": 0.7, "liver": 0.3})
    assert (head.name, list(head.candidates)) == (None, ["liver"])


def test_a_wider_part_needs_the_looks_too() -> None:
    assert read(image("MR", "BRAIN"), {"temporal": 0.95}).name == "temporal"
    assert read(image("MR", "BRAIN"), {"temporal": 0.5, "lesion": 0.5}).name is None


def test_looks_choose_among_what_the_tags_leave() -> None:
    reading = read(image("MR", "HEART"), {"ventricle": 0.85, "atrium": 0.1, "liver": 0.05})
    assert (reading.name, reading.source) == ("ventricle", "classifier")
    assert reading.candidates == {"ventricle": 0.85, "atrium": 0.1}


@pytest.mark.parametrize("kind", [None, "", "OT"])
def test_without_tags_the_looks_decide(kind: str | None) -> None:
    reading = read(image(kind), {"lesion": 0.81, "liver": 0.19})
    assert (reading.name, reading.source, reading.confidence) == ("lesion", "classifier", 0.81)


def test_below_the_threshold_it_asks_and_names_the_likeliest() -> None:
    given = image()
    reading = read(given, {"lesion": 0.52, "liver": 0.31, "atrium": 0.12, "temporal": 0.05})
    assert reading.name is None
    with pytest.raises(InputError) as caught:
        reading.decided(given, "Give --modality")
    text = str(caught.value)
    assert "likeliest: lesion (52%), liver (31%), atrium (12%). Give --modality" in text
    assert "temporal" not in text


def test_words_that_are_no_part_of_the_body_say_nothing() -> None:
    reading = read(image("MR", None, "Survey T1 +C ax"), {"atrium": 0.9})
    assert reading.name == "atrium"
    assert len(reading.candidates) == 3


def test_without_a_classifier_tags_decide_or_it_asks() -> None:
    assert read_modality(image("CT", "LIVER"), ALL).name == "liver"
    for unclear in (image(), image("CT"), image("MR", "BRAIN"), image("MR", "HEART")):
        reading = read_modality(unclear, ALL)
        with pytest.raises(InputError, match=r"no classifier .*; possible: [a-z]+") as caught:
            reading.decided(unclear, "Give --modality")
        assert "%" not in str(caught.value)


def test_a_modality_that_the_classifier_does_not_know_is_not_ruled_out() -> None:
    more = ALL | {"prostate": modality("prostate", "MR", parts="PROSTATE")}

    def look(_: MedicalImage) -> Mapping[str, float]:
        return {"atrium": 1.0}

    reading = read_modality(image("MR"), more, CLASSIFIER, look)
    assert reading.name is None
    assert "does not know prostate" in reading.reason
    assert read_modality(image("MR", "HEART"), more, CLASSIFIER, look).name == "atrium"
    assert read_modality(image("MR", "PROSTATE"), more, CLASSIFIER, look).name == "prostate"


def test_modalities_without_parts_fit_every_part() -> None:
    assert read(image("XC", "FOOT"), {"lesion": 0.9}).name == "lesion"


def test_bundles_from_before_the_parts_take_the_catalogue_s() -> None:
    old = {"ct_liver": modality("ct_liver", "CT")}
    assert read_modality(image("CT", "ABDOMEN"), old).name == "ct_liver"
    assert "none of the modalities" in read_modality(image("CT", "HEAD"), old).reason


def looks_of(**looks: float) -> Mapping[str, float]:
    return dict(sorted((dict.fromkeys(ALL, 0.0) | looks).items(), key=lambda item: -item[1]))


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ({"lesion": 0.8, "liver": 0.2}, ("lesion", 0.8)),
        # of a site or kind that nothing was learned of
        ({"lesion": 0.79, "liver": 0.01}, None),
        ({"liver": 0.4, "lesion": 0.3}, None),
        ({"liver": 0.9}, None),
    ],
)
def test_an_image_is_refused_only_where_the_looks_would_decide_on_another(
    looks: Mapping[str, float], found: tuple[str, float] | None
) -> None:
    assert mistaken_for(image(), "liver", ALL, CLASSIFIER, lambda _: looks_of(**looks)) == found


def test_tags_that_name_what_was_chosen_are_believed_unseen() -> None:
    def look(_: MedicalImage) -> Mapping[str, float]:
        pytest.fail("the image need not be looked at")

    assert mistaken_for(image("CT", "LIVER"), "liver", ALL, CLASSIFIER, look) is None
    # nor may it be, where nothing is known of what was chosen
    known = CLASSIFIER.model_copy(update={"modalities": ["liver", "lesion"]})
    assert mistaken_for(image(), "atrium", ALL, known, look) is None
    assert mistaken_for(image(), "liver", ALL, None, look) is None


def test_tags_of_another_kind_do_not_speak_for_the_choice() -> None:
    found = mistaken_for(
        image("MR", "HIPPOCAMPUS"), "liver", ALL, CLASSIFIER, lambda _: looks_of(temporal=0.9)
    )
    assert found == ("temporal", 0.9)


@given(
    kind=st.sampled_from([None, "CT", "MR", "XC", "US", "OT"]),
    part=st.sampled_from([None, "ABDOMEN", "HEART", "BRAIN", "KNEE", "?", "Chest/Abd"]),
    weights=st.lists(st.floats(0.001, 1), min_size=5, max_size=5),
)
def test_it_never_decides_against_the_tags_or_below_the_threshold(
    kind: str | None, part: str | None, weights: list[float]
) -> None:
    looks = {name: weight / sum(weights) for name, weight in zip(ALL, weights, strict=True)}
    reading = read(image(kind, part), looks)
    if reading.name is None:
        assert reading.reason
    else:
        assert kind in (None, "OT") or kind in ALL[reading.name].dicom_modalities
        assert reading.confidence == 1.0 or reading.confidence >= CLASSIFIER.threshold
        assert part != "KNEE" or reading.name == "lesion"


def test_a_volume_is_looked_at_in_its_middle() -> None:
    voxels = np.zeros((9, 8, 41), np.int16) + np.arange(41, dtype=np.int16)
    slices = middle_slices(MedicalImage(voxels, Grid((9, 8, 41), np.diag([1.0, 1, 3, 1]))))
    assert sorted({int(value) for value in slices.ravel()}) == [10, 20, 30]


def test_tiles_are_the_whole_slice_whatever_its_values() -> None:
    """Bright is 1, dark is 0, the shape is kept and the rest is padding."""
    ramp = np.linspace(0, 1, 40)[None, None, :].repeat(20, axis=1)
    for slices in ((200 * ramp).astype(np.uint8), (3000 * ramp + 7).astype(np.uint16)):
        tile = tiles_of(slices, 64)[0]
        assert tile.shape == (3, 64, 64)
        assert tile[0, 16, 63] > 0.97
        assert tile[0, 16, 0] < 0.03
        assert tile[:, 32:].max() == 0


def test_ct_in_hounsfield_units_is_windowed() -> None:
    """Else soft tissue would be one grey between air and bone, unlike pictures of CT."""
    slices = np.full((1, 32, 32), -1000, np.int16)
    slices[0, 4:28, 4:28] = 100
    slices[0, 14:18, 14:18] = 2000
    tile = tiles_of(slices, 64)[0, 0]
    assert tile[0, 0] == 0
    assert tile[16, 16] == pytest.approx(0.5, abs=0.02)
    assert tile[32, 32] == pytest.approx(1, abs=0.02)


def test_dicom_files_carry_the_tags(tmp_path: Path) -> None:
    write_series(tmp_path, np.ones((9, 8, 2), np.int16), np.diag([-1.0, -1.0, 3.0, 1.0]), [0, 1])
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.BodyPartExamined = "ABDOMEN"
        dataset.StudyDescription, dataset.SeriesDescription = "CT Abdomen", "axial"
        dataset.save_as(file)
    given = read_image(tmp_path)
    found = (given.dicom_modality, given.dicom_body_part, given.dicom_description)
    assert found == ("CT", "ABDOMEN", "CT Abdomen axial") == tuple(series_tags(tmp_path))
    assert read(given).name == "liver"


@pytest.fixture
def segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    """Its backbone is random, and its classifier tells two images apart that it has seen."""
    torch.manual_seed(0)
    network = EspMedSam(TinyViT(1).eval())
    monkeypatch.setattr(Bundle, "load_network", lambda self: network)
    bundle = Bundle(tmp_path, bundle_of(ALL["liver"], ALL["lesion"]).description)
    centres = torch.stack([features_of(network.encoder, stripes(width), 64) for width in (1, 9)])
    size = centres.shape[1]
    described = CLASSIFIER.model_copy(update={"modalities": ["liver", "lesion"]})
    classifier = ModalityClassifier(
        described, torch.zeros(size), torch.eye(size), centres, torch.full((2,), 1e3)
    )
    return Segmenter(save_classifier(bundle, classifier, {}), device="cpu")


def stripes(width: int) -> MedicalImage:
    voxels = (100 * (np.arange(64) // width % 2)).astype(np.uint8)[:, None].repeat(64, axis=1)
    return MedicalImage(voxels, Grid((64, 64), np.eye(4)), Path("stripes.png"))


def test_the_segmenter_reads_with_its_own_backbone(segmenter: Segmenter) -> None:
    assert segmenter.read_modality(stripes(1)).name == "liver"
    assert segmenter.read_modality(stripes(9)).name == "lesion"


def test_the_segmenter_refuses_what_looks_like_another_modality(segmenter: Segmenter) -> None:
    segmenter.check_modality(stripes(1), "liver", "Choose another")
    with pytest.raises(
        OtherModalityError,
        match=r"stripes\.png: this looks like lesion \(\d+%\), not like liver\. Choose another",
    ):
        segmenter.check_modality(stripes(9), "liver", "Choose another")


def test_without_memory_to_look_nothing_is_refused(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("esp_medsam_app.inference.image_features.pooled", full)
    segmenter.check_modality(stripes(9), "liver", "")
    with pytest.raises(OutOfMemoryError, match="too little memory to look"):
        segmenter.read_modality(stripes(9))


def test_an_image_with_nothing_on_it_is_named(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=r"stripes\.png: all voxels have the value 0"):
        segmenter.read_modality(stripes(100))
