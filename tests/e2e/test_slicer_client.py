"""3D Slicer's MONAI Label module against a real server before a real PACS.

Its network client is the very file that MONAI Label installs for Slicer. What Slicer itself makes
of the files is tested where ESP_MEDSAM_SLICER_PYTHON names a Python that has `slicer-core` (PyPI,
1 GB; in an environment of its own).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote_plus
from urllib.request import urlretrieve

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from support.dicom_phantoms import oblique, volume
from support.orthanc import Orthanc, why_not
from support.pacs_server import server_before
from support.real_server import Served, thin_series

pytestmark = pytest.mark.e2e
needs_orthanc = pytest.mark.skipif(bool(why_not()), reason=why_not() or "Orthanc is there")

LIVER, HIPPOCAMPUS = "esp_medsam_ct_liver", "esp_medsam_mr_hippocampus"
POSTERIOR = "posterior_hippocampus"
PATIENCE = 300
TOKEN = "a token of the annotators"
# what the module adds to every inference
AS_SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}
SLICER = "ESP_MEDSAM_SLICER_PYTHON"
ROUND_TRIP = Path(__file__).parents[1] / "support" / "slicer_round_trip.py"


@dataclass(frozen=True)
class Station:
    """A server with a PACS, and where Slicer works."""

    url: str
    ct: str
    mr: str
    other: str
    audit: Path


def slicers_own(name: str = "slicer_client") -> ModuleType:
    """The client inside the module for 3D Slicer that MONAI Label installs."""
    file = Path(sys.prefix, "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")
    if not file.is_file():
        pytest.skip(f"this MONAI Label came without its module for 3D Slicer: no {file}")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def slicer_module() -> ModuleType:
    return slicers_own()


@pytest.fixture(scope="module")
def station(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """A PACS with a CT, an oblique MR series, and one of another patient."""
    folder = tmp_path_factory.mktemp("station")
    archive = Orthanc(folder / "orthanc")
    archive.start()
    ct = archive.put(map(pydicom.dcmread, thin_series(samples)))
    mr = archive.put(volume(4, modality="MR", orientation=oblique()))
    slices = volume(4, modality="MR")
    for dataset in slices:
        dataset.PatientID = "ANOTHER"
    other = archive.put(slices)
    with server_before(archive, folder, {"ESP_MEDSAM_TOKEN": TOKEN}) as server:
        yield Station(server.url, ct, mr, other, server.audit)


@pytest.fixture
def slicer(station: Station, slicer_module: ModuleType, tmp_path: Path) -> Any:
    """The client, as Slicer makes it after its user has logged in: a new one for each call.

    One that has a log-in sends the headers of a body with all that it asks for later.
    """
    issued: dict[str, Any] = {}

    class Logic:
        def __getattr__(self, name: str) -> Any:
            client = slicer_module.MONAILabelClient(station.url, str(tmp_path), "user-xyz")
            assert client.auth_enabled() is True
            if not issued:
                issued.update(client.auth_token("ann", TOKEN))
            client.update_auth(issued)
            assert client.auth_valid_token() is True
            return getattr(client, name)

    return Logic()


def image_file(station: Station, image: str, folder: Path) -> Path:
    """An image of the PACS, by its id."""
    answer = requests.get(
        f"{station.url}/datastore/image",
        params={"image": image},
        auth=("ann", TOKEN),
        timeout=PATIENCE,
    )
    assert answer.status_code == 200, answer.text
    file = folder / f"{image}.nii.gz"
    file.write_bytes(answer.content)
    return file


def downloaded(url: str, sample: dict[str, Any], cache: Path) -> Path:
    """The image that was offered, as the module has Slicer's SampleData download it.

    Under the sample's name, from an address of its id, without a header; what lies there already
    under that name is taken if its checksum is right.
    """
    file = cache / sample.get("name", sample["id"])
    algorithm, digest = sample["checksum"].split(":")
    if not file.exists() or hashlib.new(algorithm, file.read_bytes()).hexdigest() != digest:
        urlretrieve(f"{url}/datastore/image?image={quote_plus(sample['id'])}", file)
    assert hashlib.new(algorithm, file.read_bytes()).hexdigest() == digest
    return file


def read(file: str | Path) -> sitk.Image:
    return sitk.ReadImage(str(file))


def same_place(one: sitk.Image, other: sitk.Image) -> bool:
    return one.GetSize() == other.GetSize() and all(
        np.allclose(getattr(one, f"Get{name}")(), getattr(other, f"Get{name}")(), atol=1e-4)
        for name in ("Origin", "Spacing", "Direction")
    )


def drawn_on(image: sitk.Image, file: Path, *values: int) -> np.ndarray:
    """Write a label map with a block of each value; its voxels `[z, y, x]`."""
    voxels = np.zeros(image.GetSize()[::-1], np.uint8)
    for place, value in enumerate(values):
        voxels[1:3, 2 + 3 * place : 4 + 3 * place, 4:8] = value
    label = sitk.GetImageFromArray(voxels)
    label.CopyInformation(image)
    sitk.WriteImage(label, str(file), True)
    return voxels


@needs_orthanc
def test_what_slicer_asks_when_it_connects(slicer: Any, station: Station) -> None:
    info = slicer.info()
    # it would send people to a newer server
    assert not info.get("config")
    assert {LIVER, HIPPOCAMPUS} <= set(info["models"])
    assert info["models"][HIPPOCAMPUS]["labels"] == {"anterior_hippocampus": 1, POSTERIOR: 2}
    assert (info["datastore"]["total"], info["datastore"]["completed"]) == (3, 0)
    assert slicer.train_status(check_if_running=True) is False
    sample = slicer.next_sample("first", {})
    assert sample["SeriesInstanceUID"] in (station.ct, station.mr, station.other)
    # a path would have Slicer look for a file of its own machine
    assert "path" not in sample
    assert sample["PatientID"]


@needs_orthanc
def test_the_next_sample_arrives(slicer: Any, station: Station, tmp_path: Path) -> None:
    """From the click on *Next Sample* to a mask and a label of it, with a log-in."""
    sample = slicer.next_sample("first", {})
    uid = sample["SeriesInstanceUID"]
    assert sample["name"] == f"{uid}.nii.gz"
    # an image of that name, of another server or of an hour ago
    (tmp_path / sample["name"]).write_bytes(b"another")
    image = read(downloaded(station.url, sample, tmp_path))
    (tmp_path / "by_id").mkdir()
    assert same_place(image, read(image_file(station, uid, tmp_path / "by_id")))
    # that address is of this image alone
    for other in (uid, station.ct, station.mr):
        with pytest.raises(HTTPError, match="401"):
            urlretrieve(f"{station.url}/datastore/image?image={other}", tmp_path / "other")
    file, _ = slicer.infer(LIVER, sample["id"], dict(AS_SLICER, any_image=True))
    assert same_place(read(file), image)
    assert slicer.datastore()["objects"][sample["id"]]["image"]


@needs_orthanc
def test_by_image_and_by_session(slicer: Any, station: Station, tmp_path: Path) -> None:
    image = image_file(station, station.ct, tmp_path)
    file, told = slicer.infer(LIVER, station.ct, dict(AS_SLICER))
    by_image = read(file)
    voxels = sitk.GetArrayFromImage(by_image)
    assert told["label_names"] == {"liver": 1}
    assert same_place(by_image, read(image))
    assert (voxels == 1).sum() > 1000
    session = slicer.create_session(str(image))["session_id"]
    assert slicer.get_session(session)["name"]
    file, _ = slicer.infer(LIVER, "", dict(AS_SLICER), session_id=session)
    by_session = read(file)
    assert same_place(by_session, by_image)
    assert np.array_equal(sitk.GetArrayFromImage(by_session), voxels)
    slicer.remove_session(session)
    with pytest.raises(Exception, match="404"):
        slicer.get_session(session)


@needs_orthanc
def test_some_segments_are_submitted_and_fetched(
    slicer: Any, station: Station, tmp_path: Path
) -> None:
    image = read(image_file(station, station.mr, tmp_path))
    # Slicer counts the segments that it exports from one, whatever the model calls them; the module
    # sends their names, and no model
    drawn = drawn_on(image, tmp_path / "label.nrrd", 1)
    params = {"label_info": [{"name": POSTERIOR, "idx": 1}]}
    saved = slicer.save_label(station.mr, str(tmp_path / "label.nrrd"), params=params)
    assert saved["image"] == station.mr
    assert slicer.info()["datastore"]["completed"] == 1
    final = read(slicer.download_label(station.mr, "final"))
    assert same_place(final, image)
    assert np.array_equal(sitk.GetArrayFromImage(final), 2 * drawn)
    # both, behind a background: the module counts it in idx, and Slicer's export does not
    drawn = drawn_on(image, tmp_path / "label.nrrd", 1, 2)
    names = (POSTERIOR, "anterior_hippocampus")
    params = {"label_info": [{"name": n, "idx": i} for i, n in enumerate(names, start=2)]}
    slicer.save_label(station.mr, str(tmp_path / "label.nrrd"), params=params)
    final = sitk.GetArrayFromImage(read(slicer.download_label(station.mr, "final")))
    assert np.array_equal(final, np.array([0, 2, 1])[drawn])
    lines = [json.loads(line) for line in station.audit.read_text().splitlines()]
    assert [line["image"] for line in lines if line["action"] == "label.save"] == [station.mr] * 2
    # what has a label is not offered again
    offered = {slicer.next_sample("first", {})["SeriesInstanceUID"] for _ in range(3)}
    assert offered == {station.ct, station.other}


@needs_orthanc
def test_the_model_s_first_draft_is_fetched(slicer: Any, station: Station) -> None:
    """The batch's label maps, which the module shows when it opens an image."""
    started = requests.post(
        f"{station.url}/batch/infer/{LIVER}",
        json={"images": [station.ct]},
        auth=("ann", TOKEN),
        timeout=PATIENCE,
    )
    assert started.status_code == 200, started.text
    wait_for(lambda: "original" in labels_of(slicer, station.ct))
    original = labels_of(slicer, station.ct)["original"]
    assert list(original["info"]["params"]["label_names"]) == ["liver"]
    draft = read(slicer.download_label(station.ct, "original"))
    file, _ = slicer.infer(LIVER, station.ct, dict(AS_SLICER))
    assert same_place(draft, read(file))
    assert np.array_equal(sitk.GetArrayFromImage(draft), sitk.GetArrayFromImage(read(file)))


def labels_of(slicer: Any, image: str) -> dict[str, Any]:
    return dict(slicer.datastore()["objects"].get(image, {}).get("labels", {}))


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@needs_orthanc
def test_training_is_started_asked_for_and_stopped(
    slicer: Any, station: Station, tmp_path: Path
) -> None:
    params = {"label_info": [{"name": POSTERIOR, "idx": 1}]}
    for image in (station.mr, station.other):
        drawn_on(read(image_file(station, image, tmp_path)), tmp_path / "label.nrrd", 1)
        if image == station.other:
            # of one patient nothing better can come
            with pytest.raises(Exception, match=r"422.*of one patient"):
                slicer.train_start(HIPPOCAMPUS, {})
        slicer.save_label(image, str(tmp_path / "label.nrrd"), params=params)
    started = slicer.train_start(HIPPOCAMPUS, {"max_epochs": 200, "tracking": "None"})
    assert started["status"] in ("SUBMITTED", "RUNNING")
    with pytest.raises(Exception, match="429"):
        slicer.train_start(HIPPOCAMPUS, {})
    # at once, so that the module's button stops it
    assert slicer.train_status(check_if_running=True)
    wait_for(lambda: slicer.train_status()["status"] == "RUNNING")
    slicer.train_stop()
    wait_for(lambda: not slicer.train_status(check_if_running=True))
    ended = slicer.train_status()
    assert (ended["status"], ended["queue"]) == ("STOPPED", [])
    assert ended["result"].startswith("not activated, because")


@needs_orthanc
def test_images_of_a_pacs_are_not_sent_here(
    slicer: Any, station: Station, slicer_module: ModuleType, tmp_path: Path
) -> None:
    image = image_file(station, station.mr, tmp_path)
    with pytest.raises(slicer_module.MONAILabelClientException) as caught:
        slicer.upload_image(str(image), "mine")
    assert "Images are sent to the PACS" in caught.value.msg


def test_an_image_is_added_to_a_folder(
    served: Served, slicer_module: ModuleType, tmp_path: Path
) -> None:
    """The other kind of studies, and MONAI Label's own way to start a server."""
    slicer = slicer_module.MONAILabelClient(served.process.url, str(tmp_path), "user-xyz")
    assert slicer.auth_enabled() is False
    source = tmp_path / "mine.nii.gz"
    shutil.copy(served.studies / "thin_abdomen.nii.gz", source)
    try:
        assert slicer.upload_image(str(source), "mine")["image"] == "mine"
        assert "mine" in slicer.datastore()["objects"]
        content = requests.get(
            f"{served.process.url}/datastore/image", params={"image": "mine"}, timeout=PATIENCE
        ).content
        (tmp_path / "back.nii.gz").write_bytes(content)
        back, given = nib.load(tmp_path / "back.nii.gz"), nib.load(source)
        assert np.array_equal(back.dataobj, given.dataobj)
        assert np.array_equal(back.affine, given.affine)
    finally:
        requests.delete(f"{served.process.url}/datastore/", params={"id": "mine"}, timeout=PATIENCE)


@needs_orthanc
@pytest.mark.skipif(
    SLICER not in os.environ, reason=f"{SLICER} names no Python that has slicer-core"
)
def test_slicer_itself_reads_and_writes_it(slicer: Any, station: Station, tmp_path: Path) -> None:
    """Image and result in MRML, segments out of them, and some of these back to the server."""
    told = {}
    file, answer = slicer.infer(LIVER, station.ct, dict(AS_SLICER))
    image = image_file(station, station.ct, tmp_path)
    told["ct"] = in_slicer(image, file, list(answer["label_names"]), ["liver"], tmp_path)
    slicer.save_label(
        station.ct,
        str(tmp_path / "exported.nrrd"),
        params={"label_info": [{"name": "liver", "idx": 1}]},
    )
    final = read(slicer.download_label(station.ct, "final"))
    assert np.array_equal(sitk.GetArrayFromImage(final), sitk.GetArrayFromImage(read(file)))
    # oblique, and of two labels only the second
    image = image_file(station, station.mr, tmp_path)
    drawn = drawn_on(read(image), tmp_path / "drawn.nrrd", 1, 2)
    names = ["anterior_hippocampus", POSTERIOR]
    told["mr"] = in_slicer(image, tmp_path / "drawn.nrrd", names, [POSTERIOR], tmp_path)
    slicer.save_label(
        station.mr,
        str(tmp_path / "exported.nrrd"),
        params={"label_info": [{"name": POSTERIOR, "idx": 1}]},
    )
    final = sitk.GetArrayFromImage(read(slicer.download_label(station.mr, "final")))
    assert np.array_equal(final, np.where(drawn == 2, 2, 0))
    print(json.dumps(told))
    for one in told.values():
        assert one["apart"] < 1e-4
        assert (one["wrong_imported"], one["wrong_exported"]) == (0, 0)
        assert one["drawn"] > 0


def in_slicer(
    image: Path, label: str | Path, names: list[str], exported: list[str], folder: Path
) -> dict[str, Any]:
    """What `slicer_round_trip.py` measures; it writes `exported.nrrd`."""
    output = folder / "exported.nrrd"
    output.unlink(missing_ok=True)
    arguments = [image, label, json.dumps(names), json.dumps(exported), output]
    done = subprocess.run(
        [os.environ[SLICER], str(ROUND_TRIP), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        # its packages are its own
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))
