"""Where MONAI Label's own DICOMweb datastore is silently wrong, and this one is not.

Each test runs with both; MONAI Label's is expected to fail. When it does not any more, the test
says so, and the reason for a datastore of our own has become smaller.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from support.dicom_phantoms import localizer_of, phases, volume
from support.fake_pacs import FakePacs
from support.pacs_stores import MakeStore

from esp_medsam_app.data.dicom_seg_reading import head_of
from esp_medsam_app.server.pacs.datastore import PacsDatastore

Open = Callable[[], DICOMWebDatastore]
PATIENT = {"label_info": [{"name": "spleen", "idx": 2}], "model": "esp_medsam_ct_organs"}

both = pytest.mark.parametrize(
    "kind",
    [
        "ours",
        pytest.param(
            "monai_label",
            marks=pytest.mark.xfail(strict=True, raises=Exception, reason="MONAI Label 0.8.5"),
        ),
    ],
)


@pytest.fixture
def open_store(
    kind: str,
    pacs: FakePacs,
    make: MakeStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Open:
    # MONAI Label writes segmentations with a program of the package dcmqi
    tools = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([tools, os.environ["PATH"]]))

    def opened() -> DICOMWebDatastore:
        if kind == "ours":
            return make()
        client = DICOMwebClientX(url=pacs.url)
        client.set_http_retry_params(retry=False)
        return DICOMWebDatastore(
            client,
            {"Modality": "CT"},
            cache_path=str(tmp_path / "theirs"),
            fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
            convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
        )

    return opened


def thickness(store: DICOMWebDatastore, image: str) -> float | None:
    """Distance of the slices in what viewers get; none if it is refused."""
    with suppress(HTTPException):
        return float(nib.load(store.get_image_uri(image)).header.get_zooms()[2])
    return None


def finished(store: DICOMWebDatastore) -> None:
    """All labels are on their way."""
    if isinstance(store, PacsDatastore):
        store.outbox.send_all()


@both
@pytest.mark.parametrize("what", ["missing slice", "localizer", "phases"])
def test_slices_are_as_far_apart_as_they_are(what: str, pacs: FakePacs, open_store: Open) -> None:
    slices = phases(6) if what == "phases" else volume(8)
    if what == "missing slice":
        del slices[3]
    if what == "localizer":
        slices.append(localizer_of(slices))
    pacs.instances = list(slices)
    image = str(slices[0].SeriesInstanceUID)
    assert thickness(open_store(), image) in (None, 2.5)


@both
def test_half_a_download_is_none(series: str, pacs: FakePacs, open_store: Open) -> None:
    pacs.lost = {instance.SOPInstanceUID for instance in pacs.instances[1:5:2]}
    assert thickness(open_store(), series) is None


@both
@pytest.mark.parametrize(
    ("setting", "value"),
    [("MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI", False),
     ("MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME", True)],
)  # fmt: skip
def test_viewers_get_a_volume_whatever_is_set(
    setting: str, value: bool, series: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, setting, value)
    assert nib.load(open_store().get_image_uri(series)).shape == (12, 10, 6)


@both
def test_a_segment_has_its_own_name(
    series: str, pacs: FakePacs, open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    source = nib.load(store.get_image_uri(series))
    voxels = np.zeros(source.shape, np.uint8)
    voxels[3:5, 3:6, 1:3] = 2
    nib.save(nib.Nifti1Image(voxels, source.affine), tmp_path / "label.nii.gz")
    entries = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    info = {"label_info": entries, "model": "esp_medsam_ct_organs"}
    store.save_label(series, str(tmp_path / "label.nii.gz"), "final", info)
    finished(store)
    dataset = pacs.segmentations()[0]
    numbers = {
        int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for frame, groups in zip(
            np.atleast_3d(dataset.pixel_array),
            dataset.PerFrameFunctionalGroupsSequence,
            strict=True,
        )
        if frame.any()
    }
    assert {head_of(dataset).names[number] for number in numbers} == {"spleen"}


@both
@pytest.mark.parametrize("what", ["shape", "origin", "nothing there", "pacs away"])
def test_a_label_that_counts_is_sound(
    what: str, series: str, pacs: FakePacs, open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    assert list(store.get_labeled_images()) == []
    source = nib.load(store.get_image_uri(series))
    voxels, affine = np.zeros(source.shape, np.uint8), source.affine.copy()
    if what != "nothing there":
        voxels[3:5, 3:6, 1:3] = 2
    if what == "shape":
        voxels = voxels[:, :, :-1]
    if what == "origin":
        affine[2, 3] += 100
    if what == "pacs away":
        pacs.broken = True
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "label.nii.gz")
    with suppress(HTTPException):
        store.save_label(series, str(tmp_path / "label.nii.gz"), "final", dict(PATIENT))
    finished(store)
    sound = what in ("nothing there", "pacs away")
    assert (series in store.get_labeled_images()) == sound
    assert bool(pacs.segmentations()) == (what == "nothing there")
