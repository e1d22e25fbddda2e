"""Labels of images in a PACS: kept here, sent there, fetched from there."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.numpy_handler import pack_bits
from support.dicom_phantoms import phases, picture, volume
from support.fake_pacs import FakePacs, encoded
from support.fake_server import ORGANS
from support.pacs_stores import MODELS, QUICK, MakeStore, WriteLabel

from esp_medsam_app.data.dicom_seg_reading import head_of, labels_on
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.server.annotated_cases import annotated_cases
from esp_medsam_app.server.pacs.datastore import NOT_STORED, PacsDatastore
from esp_medsam_app.server.pacs.segments import algorithm_of, segmentation

LIVER = {"label_info": [{"name": "liver"}], "model": "esp_medsam_ct_organs"}
SPLEEN = {"label_info": [{"name": "spleen"}], "model": "esp_medsam_ct_organs"}
BOTH = {"label_info": [{"name": "liver"}, {"name": "spleen"}], "model": "esp_medsam_ct_organs"}


def voxels_of(store: PacsDatastore, image: str) -> np.ndarray:
    return np.asanyarray(nib.load(store.get_label_uri(image, "final")).dataobj)


def drawn_elsewhere(
    store: PacsDatastore,
    image: str,
    label: str,
    names: dict[int, str] | None = None,
    *,
    age: float = 0,
    automatic: bool = False,
) -> Dataset:
    """A segmentation that some other program puts into the PACS."""
    origin = algorithm_of("other" if automatic else "", corrected=False)
    names = names or {1: "liver", 2: "spleen"}
    dataset = segmentation(store.original(image), Path(label), names, None, origin)
    when = datetime.now() - timedelta(seconds=age)
    dataset.ContentDate, dataset.ContentTime = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    return dataset


def only_frames_of(dataset: Dataset, number: int) -> None:
    """Leave the frames of all other segments out."""
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    kept = [
        index
        for index, group in enumerate(groups)
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
    ]
    frames = dataset.pixel_array[kept]
    dataset.PerFrameFunctionalGroupsSequence = [groups[index] for index in kept]
    dataset.NumberOfFrames = len(kept)
    dataset.PixelData = pack_bits(frames)


# --- submitted here ----------------------------------------------------------------------------


def test_a_submitted_label_counts_at_once(
    series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    assert store.status() == {"total": 1, "completed": 0, "label_tags": {}}
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    assert store.status() == {"total": 1, "completed": 1, "label_tags": {"final": 1}}
    assert store.get_unlabeled_images() == []


def test_the_pacs_gets_it_under_its_names(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    # Slicer exports the one segment spleen as value 1; in the model it is 2
    store.save_label(series, label_map(store, series, 1), "final", SPLEEN)
    assert voxels_of(store, series).max() == 2
    assert store.outbox.send_all() == 1
    (stored,) = pacs.segmentations()
    head = head_of(stored)
    assert head.names == {1: "liver", 2: "spleen"}
    assert (head.images, len(head.instances)) == ((series,), 6)
    assert not head.automatic
    labels = labels_on(stored, read_image(store.original(series)).grid)
    assert np.array_equal(labels, voxels_of(store, series))
    info = store.get_label_info(series, "final")
    assert info["SeriesInstanceUID"] == stored.SeriesInstanceUID
    assert store.outbox.waiting() == []


def test_each_submission_is_a_series_of_its_own_number(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    for values in ((1,), (2,), (1, 2)):
        store.save_label(series, label_map(store, series, *values), "final", BOTH)
        store.outbox.send_all()
    stored = pacs.segmentations()
    assert len({str(one.SeriesInstanceUID) for one in stored}) == 3
    assert [int(one.SeriesNumber) for one in stored] == [1000, 1001, 1002]


def test_what_is_not_finished_stays_here(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    store.save_label(series, label_map(store, series, 1), "original", LIVER)
    store.save_prediction(series, label_map(store, series, 2), "final", LIVER)
    assert store.outbox.send_all() == 0
    assert pacs.segmentations() == []


def test_no_client_keeps_a_label_from_the_pacs(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    """By saying that it came from there; nor an image from those to annotate."""
    forged = {"SOPInstanceUID": "1.2.3", "not_in_pacs": "x", "_submission": "y"}
    store.update_image_info(series, {"problem": "x", "not_shown": "x", "instances": 3, "seen": 1})
    assert store.get_unlabeled_images() == [series]
    assert store.get_image_info(series)["seen"] == 1
    store.save_label(series, label_map(store, series, 1), "final", {**LIVER, **forged})
    store.update_label_info(series, "final", forged)
    assert store.outbox.send_all() == 1
    assert len(pacs.segmentations()) == 1


def test_an_empty_mask_is_stored(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    store.save_label(series, label_map(store, series), "final", BOTH)
    assert store.outbox.send_all() == 1
    assert head_of(pacs.segmentations()[0]).names == {1: "liver", 2: "spleen"}


def test_labels_of_no_modality_keep_their_names(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    entries = [{"name": "Läsion", "idx": 7}, {"name": "Gefäß", "idx": 9}]
    path = label_map(store, series, 7, 9)
    store.save_label(series, path, "final", {"label_info": entries})
    assert store.outbox.send_all() == 1
    assert head_of(pacs.segmentations()[0]).names == {1: "Läsion", 2: "Gefäß"}


@pytest.mark.parametrize("damage", ["slices", "origin", "fractions", "empty", "text", "names"])
def test_what_does_not_fit_replaces_nothing(
    damage: str, series: str, store: PacsDatastore, label_map: WriteLabel, tmp_path: Path
) -> None:
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    before = voxels_of(store, series)
    good = nib.load(label_map(store, series, 2))
    voxels, bad = np.asanyarray(good.dataobj), tmp_path / "bad.nii.gz"
    info = SPLEEN
    if damage == "slices":
        nib.save(nib.Nifti1Image(voxels[:, :, :-1], good.affine), bad)
    elif damage == "origin":
        bad = Path(label_map(store, series, 2, shift=40))
    elif damage == "fractions":
        nib.save(nib.Nifti1Image(voxels * np.float32(0.3), good.affine), bad)
    elif damage == "names":
        bad, info = Path(label_map(store, series, 2)), {**SPLEEN, "label_info": [{"name": "x"}]}
    else:
        bad.write_bytes(b"" if damage == "empty" else b"no label")
    with pytest.raises(HTTPException) as caught:
        store.save_label(series, str(bad), "final", info)
    assert caught.value.status_code == 422
    assert np.array_equal(voxels_of(store, series), before)


def test_bare_voxels_are_a_label_too(
    series: str, store: PacsDatastore, label_map: WriteLabel, tmp_path: Path
) -> None:
    expected = np.asanyarray(nib.load(label_map(store, series, 1, 2)).dataobj)
    file = tmp_path / "label.bin"
    file.write_bytes(expected.astype(np.uint8).tobytes(order="F"))
    store.save_label(series, str(file), "final", BOTH)
    assert np.array_equal(voxels_of(store, series), expected)
    file.write_bytes(b"12345")
    with pytest.raises(HTTPException) as caught:
        store.save_label(series, str(file), "final", BOTH)
    assert caught.value.status_code == 422


def test_a_segmentation_file_is_a_label_too(
    series: str, store: PacsDatastore, label_map: WriteLabel, tmp_path: Path
) -> None:
    dataset = drawn_elsewhere(
        store, series, label_map(store, series, 2, 1), {1: "Spleen", 2: "liver"}
    )
    (tmp_path / "a.dcm").write_bytes(encoded(dataset))
    store.save_label(series, str(tmp_path / "a.dcm"), "final", {})
    assert np.array_equal(
        voxels_of(store, series),
        np.asanyarray(nib.load(label_map(store, series, 1, 2)).dataobj),
    )


def test_an_x_ray_s_label_is_kept_and_told_why_it_is_not_in_the_pacs(
    pacs: FakePacs, store: PacsDatastore, label_map: WriteLabel
) -> None:
    pacs.instances.append(picture("CR"))
    uid = str(pacs.instances[-1].SeriesInstanceUID)
    store.index.refresh()
    path = label_map(store, uid, 1)
    store.save_label(uid, path, "final", {"label_info": [{"name": "spot"}]})
    assert store.outbox.send_all() == 0
    assert "tells no position" in store.get_label_info(uid, "final")[NOT_STORED]
    assert voxels_of(store, uid).any()
    assert store.outbox.waiting() == []
    assert uid in store.get_labeled_images()


# --- a PACS that is away -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["frozen", "broken", "stopped"])
def test_a_label_waits_for_the_pacs(
    how: str,
    pacs: FakePacs,
    series: str,
    make: MakeStore,
    label_map: WriteLabel,
) -> None:
    store = make()
    path = label_map(store, series, 1)
    if how == "stopped":
        pacs.close()
    elif how == "frozen":
        pacs.frozen.set()
        store.client.time_outs = QUICK
    else:
        pacs.broken = True
    count = len(pacs.asked)
    store.save_label(series, path, "final", LIVER)
    # to keep it, nobody waits for the PACS
    assert len(pacs.asked) == count
    assert store.outbox.send_all() == 0
    assert store.outbox.waiting() == [series]
    assert voxels_of(store, series).any()
    assert series in store.get_labeled_images()
    if how == "stopped":
        return
    pacs.frozen.clear()
    pacs.broken = False
    # after a restart, which may have been a crash
    again = make()
    assert again.outbox.send_all() == 1
    assert len(pacs.segmentations()) == 1
    assert again.outbox.waiting() == []


def test_a_label_of_an_image_that_is_not_here_is_kept_while_the_pacs_is_away(
    pacs: FakePacs, series: str, make: MakeStore, label_map: WriteLabel
) -> None:
    path = label_map(make(folder="other"), series, 1)
    store = make()
    assert store.list_images() == [series]
    pacs.frozen.set()
    store.client.time_outs = QUICK
    store.save_label(series, path, "final", LIVER)
    assert voxels_of(store, series).any()
    assert store.outbox.waiting() == [series]


def test_a_label_that_was_sent_twice_is_there_once(
    pacs: FakePacs, series: str, make: MakeStore, label_map: WriteLabel
) -> None:
    store = make()
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    file = store.outbox.file(series)
    content = file.read_bytes()
    assert store.outbox.send_all() == 1
    # killed after the PACS had taken it, before it was noted
    file.write_bytes(content)
    with store._file.transaction() as change:
        del change.model.objects[series].labels["final"].info["SOPInstanceUID"]
    assert make().outbox.send_all() == 1
    assert len(pacs.segmentations()) == 1


def test_a_label_that_changed_while_it_was_sent_is_sent_again(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    first, second = label_map(store, series, 1), label_map(store, series, 1, 2)
    store.save_label(series, first, "final", LIVER)
    send = store.client.store

    def and_again(dataset: Dataset) -> None:
        send(dataset)
        store.client.store = send
        store.save_label(series, second, "final", BOTH)

    store.client.store = and_again
    store.outbox.send_all()
    assert store.outbox.waiting() == [series]
    store.outbox.send_all()
    assert len(pacs.segmentations()) == 2


def test_labels_are_sent_in_the_background(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    store.start()
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    deadline = time.monotonic() + 60
    while not pacs.segmentations():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    store.stop()
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    assert store.outbox.waiting() == [series]


# --- from the PACS -----------------------------------------------------------------------------


def test_a_segmentation_in_the_pacs_is_a_label(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    # numbers by its own order, and names in another spelling; empty slices at both ends
    path = label_map(store, series, 2, 1)
    dataset = drawn_elsewhere(store, series, path, {1: "Spleen", 2: "liver"})
    pacs.instances.append(dataset)
    store.index.refresh()
    assert store.get_labeled_images() == [series]
    assert store.get_label_info(series, "final")["label_info"] == [
        {"name": "spleen", "idx": 2}, {"name": "liver", "idx": 1}
    ]  # fmt: skip
    expected = np.asanyarray(nib.load(label_map(store, series, 1, 2)).dataobj)
    assert np.array_equal(voxels_of(store, series), expected)
    # it is in the PACS already
    assert store.outbox.send_all() == 0
    assert len(pacs.segmentations()) == 1


def test_training_gets_it_on_the_image_s_grid(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    pacs.instances.append(drawn_elsewhere(store, series, label_map(store, series, 2)))
    store.index.refresh()
    (case,) = annotated_cases(store, ORGANS, MODELS)
    assert nib.load(case.pair.label).shape == read_image(case.pair.image).grid.shape
    assert case.pair.name == series
    assert any(key.startswith("patient:") for key in case.keys)


def test_training_fetches_a_segmentation_once(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    pacs.instances.append(drawn_elsewhere(store, series, label_map(store, series, 2)))
    store.index.refresh()
    (case,) = store.datalist()
    assert Path(case["label"]).is_file()

    def fetched() -> list[str]:
        # what there is may be asked for again in the background
        return [path for path in pacs.asked if "/studies/" in path]

    before = fetched()
    assert store.datalist() == [case]
    assert fetched() == before


def test_the_newest_counts(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    old = drawn_elsewhere(store, series, label_map(store, series, 1), age=7200)
    new = drawn_elsewhere(store, series, label_map(store, series, 2), age=3600)
    for instances in ([old, new], [new, old]):
        pacs.instances += instances
        store.index.refresh()
        assert voxels_of(store, series).max() == 2
    # what is submitted here is newer
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    assert voxels_of(store, series).max() == 1
    # until somebody draws again
    late = drawn_elsewhere(store, series, label_map(store, series, 2), age=-60)
    pacs.instances.append(late)
    store.index.refresh()
    assert voxels_of(store, series).max() == 2
    assert len(store.label_versions(series, "final")) == 2


def test_the_label_here_serves_while_the_newest_cannot_be_had(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    late = drawn_elsewhere(store, series, label_map(store, series, 2), age=-60)
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    pacs.instances.append(late)
    store.index.refresh()
    pacs.broken = True
    assert voxels_of(store, series).max() == 1
    pacs.broken = False
    assert voxels_of(store, series).max() == 2


def test_our_own_segmentations_are_labels_again_after_the_cache_is_gone(
    pacs: FakePacs, series: str, make: MakeStore, label_map: WriteLabel
) -> None:
    store = make()
    for values, info in (((1,), LIVER), ((1, 2), BOTH)):
        store.save_label(series, label_map(store, series, *values), "final", info)
        store.outbox.send_all()
    expected = voxels_of(store, series)
    fresh = make(folder="fresh")
    assert fresh.get_labeled_images() == [series]
    assert np.array_equal(voxels_of(fresh, series), expected)


@pytest.mark.parametrize("why", ["automatic", "other names", "other image"])
def test_what_nobody_drew_for_us_is_no_label(
    why: str, pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    path = label_map(store, series, 1)
    names = {1: "kidney"} if why == "other names" else {1: "liver"}
    dataset = drawn_elsewhere(store, series, path, names, automatic=why == "automatic")
    if why == "other image":
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    pacs.instances.append(dataset)
    store.index.refresh()
    assert store.get_labeled_images() == []


def test_one_that_does_not_fit_is_told_and_then_forgotten(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    dataset = drawn_elsewhere(store, series, label_map(store, series, 1))
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        place = groups.PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x, y, float(z) + 1]
    pacs.instances.append(dataset)
    store.index.refresh()
    with pytest.raises(HTTPException) as caught:
        store.get_label_uri(series, "final")
    assert caught.value.status_code == 422
    assert store.get_labeled_images() == []


def test_a_removed_label_does_not_come_back(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    store.outbox.send_all()
    pacs.instances.append(drawn_elsewhere(store, series, label_map(store, series, 2), age=-5))
    store.index.refresh()
    store.remove_label(series, "final")
    store.index.refresh()
    assert store.get_labeled_images() == []
    assert not store.get_label_uri(series, "final")
    assert len(pacs.segmentations()) == 2


def test_reading_a_label_fetches_no_image(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    store.cache.drop(series)
    asked = len(pacs.asked)
    assert Path(store.get_label_uri(series, "final")).name == f"{series}.nii.gz"
    assert len(pacs.asked) == asked


# --- what a viewer stores through us ------------------------------------------------------------


def test_a_stored_segmentation_becomes_the_label(
    pacs: FakePacs, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    store.save_label(series, label_map(store, series, 1), "final", LIVER)
    dataset = drawn_elsewhere(store, series, label_map(store, series, 2), automatic=True)
    pacs.instances.append(dataset)
    assert store.receive(dataset) == series
    assert voxels_of(store, series).max() == 2
    assert len(store.label_versions(series, "final")) == 1
    # the first one, which nobody had sent yet, has been overtaken
    store.outbox.send_all()
    assert pacs.segmentations() == [dataset]


def test_ohif_describes_the_labels_of_all_models(
    pacs: FakePacs, series: str, make: MakeStore, label_map: WriteLabel
) -> None:
    """And has frames of those alone that were drawn, under numbers of its own."""
    store = make()
    names = {1: "liver", 2: "spleen", 3: "spot"}
    dataset = drawn_elsewhere(store, series, label_map(store, series, 2), names)
    with pytest.raises(InputError, match="no model has all the labels"):
        store.receive(dataset)
    only_frames_of(dataset, 2)
    assert head_of(dataset).drawn == {2: "spleen"}
    pacs.instances.append(dataset)
    assert store.receive(dataset) == series
    found = voxels_of(store, series)
    assert set(np.unique(found)) == {0, ORGANS.labels["spleen"]}
    # another server, which learns of it from the PACS
    other = make(folder="fresh")
    assert np.array_equal(voxels_of(other, series), found)
    again = make(folder="fresh")
    assert again.get_labeled_images() == [series]


def test_one_of_two_phases_gets_its_segmentation(
    pacs: FakePacs, store: PacsDatastore, label_map: WriteLabel
) -> None:
    pacs.instances += phases(4)
    uid = str(pacs.instances[-1].SeriesInstanceUID)
    store.index.refresh()
    with pytest.raises(InputError):
        store.original(uid)
    dataset = drawn_elsewhere(store, f"{uid}_2", label_map(store, f"{uid}_2", 2))
    assert store.receive(dataset) == f"{uid}_2"
    assert store.get_labels_by_image_id(f"{uid}_1") == {}


@pytest.mark.parametrize("why", ["image", "names"])
def test_what_cannot_be_a_label_is_refused(
    why: str, series: str, store: PacsDatastore, label_map: WriteLabel
) -> None:
    names: dict[int, str] = {1: "Segment 1"} if why == "names" else {1: "liver"}
    dataset = drawn_elsewhere(store, series, label_map(store, series, 1), names)
    expected: Any = InputError
    if why == "image":
        dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
        expected = UnknownNameError
    with pytest.raises(expected):
        store.receive(dataset)
    assert store.get_labeled_images() == []


def test_a_tilted_series_can_be_labelled(
    pacs: FakePacs, store: PacsDatastore, tmp_path: Path
) -> None:
    tilt = np.array([0, np.tan(np.radians(15)) * 2.5, 2.5])
    pacs.instances += volume(6, step=tilt)
    uid = str(pacs.instances[-1].SeriesInstanceUID)
    store.index.refresh()
    grid = read_image(store.original(uid)).grid
    voxels = np.zeros(grid.shape, np.uint8)
    voxels[3:5, 2:6, 2] = 1
    nib.save(nib.Nifti1Image(voxels, grid.affine), tmp_path / "label.nii.gz")
    store.save_label(uid, str(tmp_path / "label.nii.gz"), "final", LIVER)
    assert store.outbox.send_all() == 1
    assert np.array_equal(labels_on(pacs.segmentations()[0], grid), voxels)
