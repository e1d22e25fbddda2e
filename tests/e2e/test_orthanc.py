"""The PACS datastore against a real Orthanc, and a real server in front of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from fastapi import HTTPException
from highdicom.frame import encode_frame
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
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
from support.fake_pacs import encoded
from support.orthanc import PASSWORD, USER, Orthanc, why_not
from support.pacs_stores import MODELS, PATIENT, QUICK
from support.real_server import START_SECONDS, copy_app

from esp_medsam_app.data.dicom_seg_reading import head_of, labels_on
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import UnreachableError
from esp_medsam_app.server.launch import start_server
from esp_medsam_app.server.pacs.client import PacsClient, TimeOuts
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.pacs.pointers import grid_of
from esp_medsam_app.server.submitted_labels import SubmittedLabels

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "Orthanc is there"),
]

OFFERED = ("CT", "MR", "CR", "DX", "US", "XA", "XC", "OT")


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """An empty one."""
    archive = Orthanc(tmp_path / "orthanc")
    archive.start()
    yield archive
    archive.stop()


def opened(
    archive: Orthanc,
    folder: Path,
    credentials: tuple[str, str] | None = None,
    time_outs: TimeOuts = PATIENT,
) -> PacsDatastore:
    client = PacsClient(archive.url, credentials, time_outs)
    labels = SubmittedLabels(lambda: MODELS, grid_of=grid_of)
    return PacsDatastore(client, folder, labels, lambda: OFFERED)


def packed(dataset: Dataset, syntax: UID) -> Dataset:
    """The same slice, its pixels compressed."""
    result = pydicom.dcmread(BytesIO(encoded(dataset)))
    # of values below 256, in as few bits as lossy JPEG wants
    frame = dataset.pixel_array.astype(np.uint8)
    content = encode_frame(
        frame,
        syntax,
        bits_allocated=8,
        bits_stored=8,
        photometric_interpretation="MONOCHROME2",
        pixel_representation=0,
    )
    result.BitsAllocated = result.BitsStored = 8
    result.HighBit, result.PixelRepresentation = 7, 0
    result.PixelData = encapsulate([content])
    result["PixelData"].VR = "OB"
    result["PixelData"].is_undefined_length = True
    result.file_meta.TransferSyntaxUID = syntax
    return result


def test_series_of_every_kind_come_as_they_are(orthanc: Orthanc, tmp_path: Path) -> None:
    series = {
        "axial": volume(5),
        "unsorted": list(reversed(volume(5))),
        "oblique": volume(5, orientation=oblique()),
        "sagittal": volume(5, orientation=SAGITTAL, modality="MR"),
        "single": volume(1),
        "enhanced": [enhanced(5)],
        "x-ray": [picture("CR")],
        "digital x-ray": [picture("DX")],
        "angiogram": [picture("XA")],
        "film of an angiogram": [film()],
        "ultrasound": [picture("US", colour=True)],
        "photograph": [picture("XC", colour=True)],
    }
    uids = {kind: orthanc.put(datasets) for kind, datasets in series.items()}
    store = opened(orthanc, tmp_path / "cache")
    assert sorted(store.list_images()) == sorted(uids.values())
    for kind, uid in uids.items():
        folder = tmp_path / "reference" / kind.replace(" ", "_")
        folder.mkdir(parents=True)
        for number, dataset in enumerate(series[kind]):
            dataset.save_as(folder / f"{number}.dcm", write_like_original=False)
        expected, found = read_image(folder), read_image(store.original(uid))
        assert np.array_equal(found.voxels, expected.voxels), kind
        assert np.allclose(found.grid.affine, expected.grid.affine), kind
        assert store.get_image_uri(uid)


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGBaseline8Bit]
)
def test_compressed_series_are_read(syntax: UID, orthanc: Orthanc, tmp_path: Path) -> None:
    uid = orthanc.put(packed(slice_, syntax) for slice_ in volume(3))
    folder = opened(orthanc, tmp_path / "cache").original(uid)
    stored = {pydicom.dcmread(file).file_meta.TransferSyntaxUID for file in folder.iterdir()}
    # as they were stored: nothing is lost on the way
    assert stored == {syntax}
    voxels = read_image(folder).voxels
    # lossy JPEG blurs the edge
    apart = 60 if syntax == JPEGBaseline8Bit else 0
    assert (np.abs(voxels[5:8, 4:6, 1] - 190) <= apart).all()
    assert abs(voxels[0, 0, 1] - 40) <= apart
    assert voxels.shape == (12, 10, 3)


def test_what_is_no_volume_is_split_or_refused(orthanc: Orthanc, tmp_path: Path) -> None:
    missing = volume(8)
    del missing[3]
    slices = volume(6)
    store = opened(orthanc, tmp_path / "cache")
    with pytest.raises(HTTPException, match="1 missing"):
        store.get_image_uri(orthanc.put(missing))
    localized = orthanc.put([localizer_of(slices), *slices])
    assert nib.load(store.get_image_uri(localized)).shape == (12, 10, 6)
    two = orthanc.put(phases(4))
    with pytest.raises(HTTPException, match="2 images"):
        store.get_image_uri(two)
    assert nib.load(store.get_image_uri(f"{two}_2")).shape == (12, 10, 4)


def test_labels_go_there_and_come_back(orthanc: Orthanc, tmp_path: Path) -> None:
    for kind, slices in {"axial": volume(6), "oblique": volume(6, orientation=oblique())}.items():
        uid = orthanc.put(slices)
        store = opened(orthanc, tmp_path / f"cache_{kind}")
        source = nib.load(store.get_image_uri(uid))
        voxels = np.zeros(source.shape, np.uint8)
        # empty slices at both ends, and only the second organ
        voxels[4:8, 3:6, 2:4] = 1
        nib.save(nib.Nifti1Image(voxels, source.affine), tmp_path / "label.nii.gz")
        info = {"label_info": [{"name": "Spleen"}], "model": "esp_medsam_ct_organs"}
        store.save_label(uid, str(tmp_path / "label.nii.gz"), "final", info)
        assert store.outbox.send_all() == 1
        # another server, which knows nothing of it
        other = opened(orthanc, tmp_path / f"fresh_{kind}")
        assert uid in other.get_labeled_images()
        again = nib.load(other.get_label_uri(uid, "final"))
        assert again.shape == source.shape
        assert np.array_equal(np.asanyarray(again.dataobj), voxels * 2)
        assert np.allclose(again.affine, source.affine, atol=1e-3)


def test_with_credentials(tmp_path: Path) -> None:
    archive = Orthanc(tmp_path / "orthanc", with_password=True)
    archive.start()
    try:
        uid = archive.put(volume(3))
        assert opened(archive, tmp_path / "a", (USER, PASSWORD)).list_images() == [uid]
        stranger = opened(archive, tmp_path / "b", (USER, "wrong"))
        with pytest.raises(UnreachableError, match="credentials"):
            stranger.original(uid)
    finally:
        archive.stop()


def test_frozen_and_stopped(orthanc: Orthanc, tmp_path: Path) -> None:
    uid, unseen = orthanc.put(volume(4)), orthanc.put(volume(4))
    store = opened(orthanc, tmp_path / "cache")
    assert len(store.list_images()) == 2
    source = nib.load(store.get_image_uri(uid))
    label = nib.Nifti1Image(np.ones(source.shape, np.uint8), source.affine)
    nib.save(label, tmp_path / "label.nii.gz")
    orthanc.freeze()
    store.client.time_outs = QUICK
    with pytest.raises(UnreachableError):
        store.original(unseen)
    # nobody waits for it again
    assert store.client.is_silent
    assert store.original(uid).is_dir()
    info = {"label_info": [{"name": "liver"}], "model": "esp_medsam_ct_organs"}
    store.save_label(uid, str(tmp_path / "label.nii.gz"), "final", info)
    assert store.outbox.send_all() == 0
    orthanc.stop()
    orthanc.start()
    again = opened(orthanc, tmp_path / "cache")
    assert again.outbox.send_all() == 1
    again.index.refresh()
    assert len(again.index.snapshot().segmentations[uid]) == 1


def test_a_server_in_front_of_it(orthanc: Orthanc, samples: Path, tmp_path: Path) -> None:
    """`--studies http://...`: segment, DICOM SEG, submit, and a PACS that stops."""
    files = sorted((samples / "dicom" / "abdomen_phantom").iterdir())
    slices = sorted(map(pydicom.dcmread, files), key=lambda d: d.ImagePositionPatient[2])[7:9]
    uid = orthanc.put(slices)
    environment = {
        "HOME": str(tmp_path),
        "MONAI_LABEL_DATASTORE_CACHE_PATH": str(tmp_path / "cache"),
        "MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions"),
        "MONAI_LABEL_DICOMWEB_READ_TIMEOUT": "30",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    with (tmp_path / "log.txt").open("wb") as log:
        server = start_server(
            copy_app(tmp_path),
            orthanc.url,
            port=0,
            conf={"device": "cpu", "background_scores": "false", "models": "ct_liver"},
            environment=environment,
            output=log.fileno(),
        )
    try:
        assert server.wait_until_ready(START_SECONDS)["datastore"]["total"] == 1
        where = f"{server.url}/infer/esp_medsam_ct_liver?image={uid}&output="
        mask = requests.post(f"{where}image", data={"params": "{}"}, timeout=300)
        assert mask.status_code == 200, mask.text
        (tmp_path / "mask.nii.gz").write_bytes(mask.content)
        drawn = np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
        answer = requests.post(f"{where}dicom_seg", data={"params": "{}"}, timeout=300)
        assert answer.status_code == 200, answer.text
        dataset = pydicom.dcmread(BytesIO(answer.content))
        (tmp_path / "seg.dcm").write_bytes(answer.content)
        assert head_of(dataset).names == {1: "liver"}
        code = dataset.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
        assert (code.CodeValue, code.CodingSchemeDesignator) == ("10200004", "SCT")
        folder = tmp_path / "series"
        folder.mkdir()
        for number, slice_ in enumerate(slices):
            slice_.save_as(folder / f"{number}.dcm")
        assert np.array_equal(labels_on(dataset, read_image(folder).grid), drawn)
        assert _validated(tmp_path / "seg.dcm") == []
        orthanc.stop()
        sent = requests.put(
            f"{server.url}/datastore/label?image={uid}",
            data={"params": '{"model": "esp_medsam_ct_liver", "label_info": [{"name": "liver"}]}'},
            files={"label": ("label.nii.gz", mask.content)},
            timeout=60,
        )
        assert sent.status_code == 200, sent.text
        told = requests.get(f"{server.url}/info/", timeout=60).json()
        assert told["datastore"]["completed"] == 1
        orthanc.start()
        deadline = time.monotonic() + 120
        while b"SEG" not in orthanc.ask("/statistics") + _modalities(orthanc):
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.5)
    finally:
        server.stop()


def _modalities(orthanc: Orthanc) -> bytes:
    return orthanc.ask("/dicom-web/series?Modality=SEG")


def _validated(file: Path) -> list[str]:
    try:
        told = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return []
    return [line for line in told.stderr.splitlines() if line.startswith("Error")]
