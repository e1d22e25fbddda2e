"""Images of a PACS: offered, downloaded whole, split or refused."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from monailabel.config import settings
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless
from support.dicom_phantoms import (
    SAGITTAL,
    enhanced,
    film,
    localizer_of,
    oblique,
    phases,
    picture,
    volume,
)
from support.fake_pacs import FakePacs
from support.pacs_stores import PATIENT, QUICK, MakeStore

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import UnknownNameError, UnreachableError
from esp_medsam_app.server.pacs import client
from esp_medsam_app.server.pacs.client import credentials
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.pacs.series_cache import IN_USE


def holds(pacs: FakePacs, datasets: Sequence[Dataset]) -> str:
    """Put a series in; its UID."""
    pacs.instances += datasets
    return str(datasets[0].SeriesInstanceUID)


def refusal(store: PacsDatastore, image: str) -> HTTPException:
    with pytest.raises(HTTPException) as caught:
        store.get_image_uri(image)
    return caught.value


# --- what is offered ---------------------------------------------------------------------------


def test_the_modalities_served_are_offered_and_no_others(pacs: FakePacs, make: MakeStore) -> None:
    kinds = ("CR", "DX", "US", "XA", "XC")
    offered = [holds(pacs, [picture(kind)]) for kind in kinds]
    offered.append(holds(pacs, volume(3, modality="MR")))
    holds(pacs, [picture("OT")])
    store = make(modalities=(*kinds, "MR"))
    assert sorted(store.list_images()) == sorted(offered)


@pytest.mark.parametrize("kind", ["SEG", "SR", "PR", "KO", "RTSTRUCT"])
def test_what_describes_images_is_never_offered(
    kind: str, pacs: FakePacs, series: str, make: MakeStore
) -> None:
    other = picture("OT")
    other.Modality = kind
    holds(pacs, [other])
    # not even if an admin's filter asks for it
    for chosen in ({}, {"Modality": ["CT", kind]}, {"Modality": f"CT\\{kind}"}):
        store = make(search_filter=chosen, folder=str(len(chosen)))
        assert store.list_images() == [series]
    with pytest.raises(UnknownNameError):
        make().original(str(other.SeriesInstanceUID))


def test_the_admin_s_filter_counts(pacs: FakePacs, series: str, make: MakeStore) -> None:
    magnet = volume(3, modality="MR", common={"PatientID": "P2"})
    other = holds(pacs, magnet)
    assert make(search_filter={"Modality": "MR"}, folder="a").list_images() == [other]
    assert make(search_filter={"PatientID": "P2"}, folder="b").list_images() == [other]
    both = make(search_filter={"Modality": ["CT", "MR"]}, folder="c").list_images()
    assert sorted(both) == sorted([series, other])


def test_an_archive_may_cap_its_answers(pacs: FakePacs, make: MakeStore) -> None:
    for _ in range(6):
        holds(pacs, [picture("CR")])
    pacs.page = 2
    assert len(make().list_images()) == 7


def test_infos_are_those_that_viewers_ask_for(
    pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    info = store.get_image_info(series)
    first = pacs.instances[0]
    assert info["SeriesInstanceUID"] == series
    assert info["StudyInstanceUID"] == first.StudyInstanceUID
    assert (info["Modality"], info["PatientID"]) == ("CT", "P1")
    # by way of this server: the PACS' address is nobody's business
    study = first.StudyInstanceUID
    assert info["RetrieveURL"] == f"/proxy/dicom/wado/studies/{study}/series/{series}"


@pytest.mark.parametrize("image", ["1.2.3", "../../etc", "a", "", "1.2.3_1", "1." * 40 + "1"])
def test_unknown_ids_are_404(image: str, store: PacsDatastore) -> None:
    assert refusal(store, image).status_code == 404


def test_images_are_neither_added_nor_removed_here(series: str, store: PacsDatastore) -> None:
    for change in (lambda: store.add_image("x", "x.nii", {}), lambda: store.remove_image(series)):
        with pytest.raises(HTTPException) as caught:
            change()
        assert caught.value.status_code == 405


# --- what is read ------------------------------------------------------------------------------

KINDS = {
    "axial": lambda: volume(5),
    "oblique": lambda: volume(5, orientation=oblique()),
    "sagittal": lambda: volume(5, orientation=SAGITTAL, modality="MR"),
    "single slice": lambda: volume(1),
    "enhanced": lambda: [enhanced(5)],
    "x-ray": lambda: [picture("CR")],
    "digital x-ray": lambda: [picture("DX")],
    "angiogram": lambda: [picture("XA")],
    "film of an angiogram": lambda: [film()],
}


@pytest.mark.parametrize("kind", KINDS)
def test_viewers_get_the_grid_that_is_segmented(
    kind: str, pacs: FakePacs, store: PacsDatastore
) -> None:
    uid = holds(pacs, list(reversed(KINDS[kind]())))
    image = read_image(store.original(uid))
    shown = nib.load(store.get_image_uri(uid))
    voxels = np.asanyarray(shown.dataobj)
    assert np.array_equal(voxels.reshape(image.voxels.shape), image.voxels)
    if image.grid.has_patient_space:
        assert np.allclose(shown.affine, image.grid.affine, atol=1e-4)


def test_a_photograph_is_shown_as_a_picture(pacs: FakePacs, store: PacsDatastore) -> None:
    uid = holds(pacs, [picture("XC", colour=True)])
    shown = np.asarray(Image.open(store.get_image_uri(uid)))
    assert np.array_equal(shown.swapaxes(0, 1), read_image(store.original(uid)).voxels)


def test_the_rescaling_of_each_slice_counts(pacs: FakePacs, store: PacsDatastore) -> None:
    slices = volume(4)
    for number, slice_ in enumerate(slices):
        slice_.RescaleSlope, slice_.RescaleIntercept = str(number + 1), "-1"
    voxels = read_image(store.original(holds(pacs, slices))).voxels
    assert [int(voxels[0, 0, k]) for k in range(4)] == [49, 99, 149, 199]


def test_a_second_look_asks_for_nothing(pacs: FakePacs, series: str, store: PacsDatastore) -> None:
    first = store.get_image_uri(series)
    count = len(pacs.asked)
    assert store.get_image_uri(series) == first
    assert store.original(series).is_dir()
    assert len(pacs.asked) == count


# --- what is no volume -------------------------------------------------------------------------


def test_a_missing_slice_is_422(pacs: FakePacs, store: PacsDatastore) -> None:
    slices = volume(8)
    del slices[3]
    uid = holds(pacs, slices)
    error = refusal(store, uid)
    assert error.status_code == 422
    assert "1 missing" in error.detail
    # and it is not offered again
    store.index.refresh()
    assert uid in store.list_images()
    assert uid not in store.get_unlabeled_images()


def test_a_localizer_in_the_series_is_left_out(pacs: FakePacs, store: PacsDatastore) -> None:
    slices = volume(6)
    uid = holds(pacs, [localizer_of(slices), *slices])
    assert nib.load(store.get_image_uri(uid)).shape == (12, 10, 6)


def test_phases_become_images_of_their_own(pacs: FakePacs, store: PacsDatastore) -> None:
    uid = holds(pacs, phases(4))
    store.index.refresh()
    error = refusal(store, uid)
    assert error.status_code == 422
    assert f"{uid}_1 (AcquisitionNumber 1, 4 instances)" in error.detail
    assert {f"{uid}_1", f"{uid}_2"} < set(store.list_images())
    assert uid not in store.list_images()
    for image in (f"{uid}_1", f"{uid}_2"):
        assert nib.load(store.get_image_uri(image)).shape == (12, 10, 4)
        assert len(list(store.original(image).iterdir())) == 4
    assert refusal(store, f"{uid}_3").status_code == 404


def test_phases_that_nothing_tells_apart_are_422(pacs: FakePacs, store: PacsDatastore) -> None:
    error = refusal(store, holds(pacs, phases(4, AcquisitionNumber=1)))
    assert error.status_code == 422
    assert "same place" in error.detail


def test_a_tilted_gantry_is_segmented_but_not_shown_as_a_volume(
    pacs: FakePacs, store: PacsDatastore
) -> None:
    tilt = np.array([0, np.tan(np.radians(15)) * 2.5, 2.5])
    slices = volume(6, step=tilt)
    uid = holds(pacs, slices)
    store.index.refresh()
    error = refusal(store, uid)
    assert error.status_code == 422
    assert "tilted gantry" in error.detail
    assert uid not in store.get_unlabeled_images()
    grid = read_image(store.original(uid)).grid
    for number, slice_ in enumerate(slices):
        where = (grid.affine @ [0, 0, number, 1])[:3] * [-1, -1, 1]
        assert np.allclose(where, np.array(slice_.ImagePositionPatient, float), atol=1e-3)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (
            lambda: enhanced(4, scans=2),
            r"same place \(frame \d of .*\.dcm and frame \d of .*\.dcm\)",
        ),
        (
            lambda: enhanced(8, missing=[3]),
            r"5\.000 mm between frame \d of .* and frame \d of .*: 1 m",
        ),
    ],
)
def test_one_multi_frame_image_that_is_no_volume_is_422(
    image: Callable[[], Dataset], told: str, pacs: FakePacs, store: PacsDatastore
) -> None:
    uid = holds(pacs, [image()])
    store.index.refresh()
    error = refusal(store, uid)
    assert error.status_code == 422
    assert re.search(told, error.detail), error.detail
    # its frames are in one file: there is nothing that could be put into folders
    assert "folder" not in error.detail
    assert "single slices" in error.detail
    assert uid not in store.get_unlabeled_images()


def test_a_tilted_multi_frame_image_is_segmented_but_not_shown_as_a_volume(
    pacs: FakePacs, store: PacsDatastore
) -> None:
    uid = holds(pacs, [enhanced(5, step=(0, 0.67, 2.5))])
    store.index.refresh()
    error = refusal(store, uid)
    assert error.status_code == 422
    assert "tilted gantry" in error.detail
    assert uid not in store.get_unlabeled_images()
    affine = read_image(store.original(uid)).grid.affine
    assert np.allclose(affine[:3, 2], (0, -0.67, 2.5), atol=1e-4)


def test_x_rays_of_one_series_are_images_of_their_own(pacs: FakePacs, store: PacsDatastore) -> None:
    first = picture("CR")
    second = picture("CR", SeriesInstanceUID=first.SeriesInstanceUID, InstanceNumber=2)
    uid = holds(pacs, [first, second])
    assert refusal(store, uid).status_code == 422
    assert store.original(f"{uid}_2").is_dir()


# --- downloads ---------------------------------------------------------------------------------


def test_half_a_download_is_none(
    pacs: FakePacs, series: str, store: PacsDatastore, tmp_path: Path
) -> None:
    pacs.lost = {pacs.instances[2].SOPInstanceUID, pacs.instances[5].SOPInstanceUID}
    error = refusal(store, series)
    assert (error.status_code, error.headers) == (503, {"Retry-After": "30"})
    assert "2 of 6 instances" in error.detail
    assert not [path for path in (tmp_path / "cache" / "series").iterdir() if path.is_dir()]
    pacs.lost = set()
    assert nib.load(store.get_image_uri(series)).shape[2] == 6


def test_a_download_does_not_take_for_ever(
    series: str, store: PacsDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However steadily a series drips: instances come, but too slowly."""
    monkeypatch.setattr(client, "_LONGEST_DOWNLOAD", -1.0)
    assert refusal(store, series).status_code == 503
    assert store.cache.find(series) is None


def test_an_instance_without_all_of_its_pixels_is_refused(
    pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    pacs.instances[4].PixelData = pacs.instances[4].PixelData[:-50]
    assert refusal(store, series).status_code == 503


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("cut", [60, 150, 2000])
def test_a_connection_that_breaks_leaves_nothing(
    cut: int, compressed: bool, pacs: FakePacs, store: PacsDatastore
) -> None:
    slices = volume(4, voxels=np.random.default_rng(1).integers(0, 999, (4, 10, 12), np.int16))
    if compressed:
        for slice_ in slices:
            slice_.compress(RLELossless)
    uid = holds(pacs, slices)
    pacs.cut = cut
    assert refusal(store, uid).status_code == 503
    assert store.cache.find(uid) is None
    pacs.cut = 0
    assert store.original(uid).is_dir()


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_a_cache_that_lost_files_is_filled_again(
    damage: str, series: str, store: PacsDatastore
) -> None:
    folder = store.original(series)
    for file in sorted(folder.iterdir())[:3]:
        if damage == "remove":
            file.unlink()
        else:
            os.truncate(file, 200)
    assert read_image(store.original(series)).voxels.shape == (12, 10, 6)


def test_a_series_that_has_grown_is_downloaded_again(
    pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    late = pacs.instances[-2:]
    pacs.instances = pacs.instances[:-2]
    assert nib.load(store.get_image_uri(series)).shape[2] == 4
    pacs.instances += late
    store.index.refresh()
    assert nib.load(store.get_image_uri(series)).shape[2] == 6
    assert read_image(store.original(series)).voxels.shape[2] == 6


def test_the_cache_keeps_what_was_used_last(pacs: FakePacs, make: MakeStore) -> None:
    store = make(largest_cache=1)
    uids = [holds(pacs, volume(3)) for _ in range(3)]
    for age, uid in enumerate(uids):
        store.get_image_uri(uid)
        used = time.time() - 10 * IN_USE + age
        os.utime(store.cache.folder / uid, (used, used))
    last = holds(pacs, volume(3))
    store.get_image_uri(last)
    assert [path.name for path in store.cache.folder.iterdir() if path.is_dir()] == [last]
    assert [path.name for path in (store.cache.folder.parent / "converted").iterdir()] == [
        f"{last}.nii.gz"
    ]
    # it comes again
    assert nib.load(store.get_image_uri(uids[0])).shape[2] == 3


def test_what_is_in_use_is_not_taken_away(pacs: FakePacs, series: str, make: MakeStore) -> None:
    store = make(largest_cache=1)
    first = store.original(series)
    store.original(holds(pacs, volume(3)))
    assert read_image(first).voxels.shape[2] == 6


def test_what_killed_downloads_left_is_removed(
    pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    left = store.cache.folder / ".1.2.3.abc.partial"
    left.mkdir(parents=True)
    os.utime(left, (1, 1))
    store.original(series)
    assert not left.exists()


def test_work_through_the_archive_leaves_no_images_here(series: str, store: PacsDatastore) -> None:
    with store.borrowed(series) as folder:
        assert len(list(folder.iterdir())) == 6
    assert not folder.exists()
    assert store.cache.find(series) is None
    here = store.original(series)
    with store.borrowed(series) as folder:
        assert folder == here


# --- a PACS that does not answer ---------------------------------------------------------------


def frozen(pacs: FakePacs, store: PacsDatastore) -> None:
    pacs.frozen.set()
    store.client.time_outs = QUICK


def test_a_frozen_pacs_holds_nobody_up(pacs: FakePacs, series: str, make: MakeStore) -> None:
    store = make(max_age=0)
    here = store.original(series)
    assert store.list_images() == [series]
    frozen(pacs, store)
    store.client.time_outs = PATIENT
    count = len(pacs.asked)
    for _ in range(50):
        # each finds that the PACS should be asked again, and nobody waits for the one that does
        assert store.list_images() == [series]
        assert store.status()["total"] == 1
        assert store.original(series) == here
        assert store.get_image_uri(series)
    assert len(pacs.asked) <= count + 2


def test_after_one_time_out_others_fail_at_once(
    pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    assert store.list_images() == [series]
    frozen(pacs, store)
    assert refusal(store, series).status_code == 503
    count = len(pacs.asked)
    for _ in range(20):
        error = refusal(store, series)
        assert error.status_code == 503
        assert "does not answer" in error.detail
    assert len(pacs.asked) == count


@pytest.mark.parametrize("what", ["search", "series"])
def test_an_answer_that_stops_in_the_middle_is_not_waited_for(
    what: str, pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    if what == "series":
        assert store.list_images() == [series]
    store.client.time_outs = QUICK
    pacs.stall = 20 if what == "search" else 2000
    error = refusal(store, series)
    assert error.status_code == 503
    assert "does not answer" in error.detail
    assert store.cache.find(series) is None
    assert store.client.is_silent


def test_after_the_pause_the_pacs_is_asked_again(
    pacs: FakePacs, series: str, store: PacsDatastore
) -> None:
    assert store.list_images() == [series]
    pacs.frozen.set()
    store.client.time_outs = dataclasses.replace(QUICK, pause=0)
    assert refusal(store, series).status_code == 503
    pacs.frozen.clear()
    store.client.time_outs = PATIENT
    assert store.get_image_uri(series)


def test_a_stopped_pacs_leaves_what_is_here(pacs: FakePacs, series: str, make: MakeStore) -> None:
    make().get_image_uri(series)
    pacs.close()
    # also after a restart, which cannot ask what there is
    store = make()
    assert store.list_images() == [series]
    assert read_image(store.original(series)).voxels.shape[2] == 6


def test_a_pacs_that_is_broken_is_503(pacs: FakePacs, series: str, store: PacsDatastore) -> None:
    store.list_images()
    pacs.broken = True
    assert refusal(store, series).status_code == 503
    store.index.refresh()
    assert store.list_images() == [series]


def test_the_pacs_is_asked_again_in_the_background(
    pacs: FakePacs, series: str, make: MakeStore
) -> None:
    store = make(max_age=0)
    assert store.list_images() == [series]
    other = holds(pacs, volume(2))
    deadline = time.monotonic() + 60
    while other not in store.list_images():
        assert time.monotonic() < deadline


# --- credentials -------------------------------------------------------------------------------


def test_credentials_are_sent(pacs: FakePacs, series: str, make: MakeStore) -> None:
    pacs.password = "secret"
    assert make(credentials=("doctor", "secret")).list_images() == [series]


def test_wrong_credentials_are_told(pacs: FakePacs, series: str, make: MakeStore) -> None:
    store = make(credentials=("doctor", "wrong"))
    pacs.password = "secret"
    with pytest.raises(UnreachableError, match="refuses this server's credentials"):
        store.original(series)


@pytest.mark.parametrize("names", ["DATASTORE", "DICOMWEB"])
def test_both_names_of_the_credentials_count(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, f"MONAI_LABEL_{names}_USERNAME", "doctor")
    monkeypatch.setattr(settings, f"MONAI_LABEL_{names}_PASSWORD", "secret")
    assert credentials() == ("doctor", "secret")


def test_what_is_no_dicomweb_is_told(pacs: FakePacs, make: MakeStore) -> None:
    store = make()
    store.client.web.base_url += "/elsewhere"
    with pytest.raises((UnreachableError, UnknownNameError)):
        store.original("1.2.3")


def test_a_damaged_pointer_is_made_again(
    series: str, store: PacsDatastore, make: MakeStore
) -> None:
    store.original(series)
    shutil.rmtree(store.cache.folder.parent / "images")
    again = make()
    assert again.original(series).is_dir()
    assert again.get_image_uri(series)


def test_why_nothing_is_listed_is_told(make: MakeStore, pacs: FakePacs) -> None:
    """To the viewer's statistics, and to whoever starts the server."""
    assert "problem" not in make().status()
    pacs.close()
    told = make(time_outs=QUICK, folder="other").status()
    assert (told["total"], told["completed"]) == (0, 0)
    assert "does not answer" in told["problem"]
