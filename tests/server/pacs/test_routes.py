"""A PACS behind MONAI Label's own endpoints."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from monailabel.app import app as endpoints
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.config import TaskConfig
from monailabel.interfaces.utils import app as registry
from support.conversations import talk, unblocked, until
from support.dicom_phantoms import phases, picture, volume
from support.fake_pacs import FakePacs, encoded
from support.fake_server import ORGANS, SPOTS, FakeSegmenters, detail
from support.fuzz import Fuzz, opened_files, send
from support.pacs_stores import QUICK

from esp_medsam_app.data.dicom_seg_reading import head_of, labels_on
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.door.settings import DoorSettings
from esp_medsam_app.server.infer_task import EspMedSamInferTask
from esp_medsam_app.server.pacs.datastore import PacsDatastore
from esp_medsam_app.server.pacs.routes import add_dicom_seg_route, dicom_seg_of

CT = ORGANS.model_copy(update={"dicom_modalities": ("CT",)})
XRAY = SPOTS.model_copy(update={"dicom_modalities": ("CR",)})


@pytest.fixture
def served() -> tuple[Modality, ...]:
    return CT, XRAY


@pytest.fixture
def app(
    tmp_path: Path,
    pacs: FakePacs,
    served: tuple[Modality, ...],
    segmenters: FakeSegmenters,
    monkeypatch: pytest.MonkeyPatch,
) -> EspMedSamApp:
    class Family(TaskConfig):
        def infer(self) -> dict[str, EspMedSamInferTask]:
            return {f"esp_medsam_{m.name}": EspMedSamInferTask(m, segmenters) for m in served}

        def trainer(self) -> None:
            return None

    class App(EspMedSamApp, MONAILabelApp):
        families = {"fake": Family}  # noqa: RUF012

    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_READ_TIMEOUT", 60)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 60)
    return App(str(tmp_path / "app"), pacs.url + "/", {})


@pytest.fixture
def client(app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    add_dicom_seg_route(endpoints)
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", app.app_dir)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", app.studies)
    monkeypatch.setitem(registry.apps, f"{app.app_dir}{app.studies}", app)
    client = TestClient(endpoints, raise_server_exceptions=False)
    yield client
    client.close()


def store_of(app: EspMedSamApp) -> PacsDatastore:
    store = app.datastore()
    assert isinstance(store, PacsDatastore)
    return store


def inferred(client: TestClient, image: str, output: str, **params: Any) -> Any:
    model = params.pop("model", "esp_medsam_ct_organs")
    return client.post(
        f"/infer/{model}?image={image}&output={output}", data={"params": json.dumps(params)}
    )


def organs(pacs: FakePacs) -> str:
    """A series in which only the second organ is to be seen; its UID."""
    voxels = np.full((6, 10, 12), 7, np.int16)
    voxels[2:4, 3:7, 4:9] = 210
    pacs.instances += volume(6, voxels=voxels)
    return str(pacs.instances[-1].SeriesInstanceUID)


def test_info_tells_what_the_models_are_meant_for(client: TestClient, pacs: FakePacs) -> None:
    pacs.instances += [*volume(3, modality="MR"), picture("CR"), picture("US")]
    told = client.get("/info/").json()["datastore"]
    # the CT series and the X-ray; nothing here segments MR and ultrasound
    assert (told["total"], told["completed"]) == (2, 0)


def test_a_series_is_segmented_on_its_own_grid(
    client: TestClient, app: EspMedSamApp, pacs: FakePacs, tmp_path: Path
) -> None:
    image = organs(pacs)
    answer = inferred(client, image, "image", result_extension=".nii.gz")
    assert answer.status_code == 200, answer.text
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    mask, shown = nib.load(tmp_path / "mask.nii.gz"), nib.load(store_of(app).get_image_uri(image))
    assert np.allclose(mask.affine, shown.affine, atol=1e-4)
    assert np.array_equal(np.asanyarray(mask.dataobj) == 2, np.asanyarray(shown.dataobj) == 200)


def test_a_dicom_seg_has_the_catalogue_s_names(
    client: TestClient, app: EspMedSamApp, pacs: FakePacs
) -> None:
    image = organs(pacs)
    # what OHIF sends along, with names in its own order
    params = {"label_info": [{"name": "spleen"}, {"name": "liver"}]}
    answer = inferred(client, image, "dicom_seg", **params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    dataset = pydicom.dcmread(BytesIO(answer.content))
    head = head_of(dataset)
    assert head.names == {1: "liver", 2: "spleen"}
    assert head.automatic
    source = read_image(store_of(app).original(image))
    labels = labels_on(dataset, source.grid)
    assert np.array_equal(labels == 2, source.voxels == 200)
    assert not (labels == 1).any()


def test_an_x_ray_has_a_mask_but_no_dicom_seg(
    client: TestClient, pacs: FakePacs, segmenters: FakeSegmenters
) -> None:
    pacs.instances.append(picture("CR"))
    image = str(pacs.instances[-1].SeriesInstanceUID)
    model = "esp_medsam_spots"
    assert inferred(client, image, "image", model=model).status_code == 200
    calls = segmenters.calls
    answer = inferred(client, image, "dicom_seg", model=model)
    assert answer.status_code == 422
    assert "tells no position in the patient" in detail(answer)
    assert segmenters.calls == calls


def test_a_tilted_series_is_segmented_slice_by_slice(
    client: TestClient, app: EspMedSamApp, pacs: FakePacs
) -> None:
    tilt = np.array([0, np.tan(np.radians(15)) * 2.5, 2.5])
    voxels = np.full((6, 10, 12), 7, np.int16)
    voxels[2:4, 3:7, 4:9] = 210
    slices = volume(6, step=tilt, voxels=voxels)
    pacs.instances += slices
    answer = inferred(client, str(slices[0].SeriesInstanceUID), "dicom_seg")
    dataset = pydicom.dcmread(BytesIO(answer.content))
    where = {str(s.SOPInstanceUID): s.ImagePositionPatient for s in slices}
    for frame, groups in zip(
        dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True
    ):
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0]
        source = str(reference.ReferencedSOPInstanceUID)
        assert groups.PlanePositionSequence[0].ImagePositionPatient == where[source]
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        index = [str(s.SOPInstanceUID) for s in slices].index(source)
        assert frame.any() == (number == 2 and index in (2, 3))


@pytest.mark.parametrize("output", ["image", "dicom_seg", "all"])
def test_what_is_no_image_is_explained(
    output: str, client: TestClient, app: EspMedSamApp, pacs: FakePacs
) -> None:
    pacs.instances += phases(4)
    uid = str(pacs.instances[-1].SeriesInstanceUID)
    answer = inferred(client, uid, output)
    assert answer.status_code == 422
    assert f"{uid}_2" in detail(answer)
    assert str(store_of(app).cache.folder) not in answer.text
    assert inferred(client, f"{uid}_2", output).status_code == 200
    assert inferred(client, "1.2.3", output).status_code == 404
    assert inferred(client, "x", output, model="unknown").status_code == 404


@pytest.mark.parametrize("params", ["{", "[]", "5"])
def test_bad_params_are_422(params: str, client: TestClient, series: str) -> None:
    url = f"/infer/esp_medsam_ct_organs?image={series}&output=dicom_seg"
    assert client.post(url, data={"params": params}).status_code == 422


def test_a_pacs_that_is_away_is_503(client: TestClient, app: EspMedSamApp, pacs: FakePacs) -> None:
    image = organs(pacs)
    client.get("/info/")
    pacs.frozen.set()
    store_of(app).client.time_outs = QUICK
    answer = inferred(client, image, "image")
    assert answer.status_code == 503
    assert "PACS does not answer" in detail(answer)
    assert client.get("/info/").status_code == 200


def test_in_a_plain_server_a_frozen_pacs_holds_nobody_up(
    client: TestClient, app: EspMedSamApp, pacs: FakePacs, series: str
) -> None:
    """The one who needs the PACS waits, and nobody else."""
    store_of(app).index.refresh()
    pacs.frozen.set()
    asked = len(pacs.asked)

    async def conversation(client: httpx.AsyncClient) -> None:
        slow = [
            asyncio.create_task(client.get(f"/datastore/image?image={series}")),
            asyncio.create_task(client.get("/proxy/dicom/qido/studies?PatientID=7")),
        ]
        await until(lambda: len(pacs.asked) >= asked + 2)
        for path in ("/info/", "/ohif/", "/datastore/?output=all"):
            assert (await client.get(path)).status_code == 200
        assert not any(task.done() for task in slow)
        # the PACS is switched off
        await asyncio.to_thread(pacs.close)
        image, studies = await asyncio.gather(*slow)
        assert (image.status_code, studies.status_code) == (503, 503)
        assert "PACS does not answer" in detail(image)
        assert str(pacs.port) not in image.text + studies.text

    with unblocked():
        talk(endpoints, conversation)
    assert "GET /dicom-web/studies?PatientID=7" in pacs.asked


@pytest.mark.parametrize("way", ["plain", pytest.param("MONAI Label", marks=pytest.mark.xfail(
    strict=True, reason="0.8.5 reaches all of the PACS"))])  # fmt: skip
def test_in_a_plain_server_viewers_reach_nothing_else_of_the_pacs(
    way: str, client: TestClient, pacs: FakePacs
) -> None:
    asked = len(pacs.asked)
    with unblocked() if way == "plain" else nullcontext():
        for path in ("%2e%2e/system", "qido/%2e%2e/%2e%2e/system", "patients"):
            assert client.get(f"/proxy/dicom/{path}").status_code == 404
            assert client.post(f"/proxy/dicom/{path}").status_code in (404, 415)
    assert len(pacs.asked) == asked


def test_a_plain_server_answers_as_before(client: TestClient, pacs: FakePacs, series: str) -> None:
    """Bodies, queries, files and errors come through the threads as they were."""
    image = organs(pacs)
    with unblocked():
        assert client.get("/datastore/image?image=1.2.3").status_code == 404
        assert client.get("/nowhere").status_code == 404
        assert client.post("/info/").status_code == 405
        assert client.get("/info", follow_redirects=False).status_code == 307
        answer = inferred(client, image, "dicom_seg")
        assert head_of(pydicom.dcmread(BytesIO(answer.content))).names == {1: "liver", 2: "spleen"}
        mask = inferred(client, image, "image", result_extension=".nrrd")
        params = json.dumps({"label_info": [{"name": "liver"}, {"name": "spleen"}]})
        sent = client.put(
            f"/datastore/label?image={image}",
            data={"params": params},
            files={"label": ("label.nrrd", mask.content)},
        )
        assert sent.status_code == 200, sent.text
        assert client.get("/info/").json()["datastore"]["completed"] == 1


def test_the_next_sample_is_one_that_can_be_shown(
    client: TestClient, app: EspMedSamApp, pacs: FakePacs, series: str
) -> None:
    broken = volume(8)
    del broken[3]
    tilted = volume(4, step=(0, 0.7, 2.5))
    pacs.instances = [*broken, *phases(3), *tilted, *pacs.instances]
    seen = set()
    for _ in range(3):
        answer = client.post("/activelearning/first", json={"client_id": str(len(seen))})
        assert answer.status_code == 200, answer.text
        seen.add(answer.json()["id"])
        assert answer.json()["StudyInstanceUID"]
    uid = str(pacs.instances[8].SeriesInstanceUID)
    # both phases, each by itself, and the sound series
    assert seen <= {series, f"{uid}_1", f"{uid}_2"}


def test_a_viewer_s_round(client: TestClient, app: EspMedSamApp, pacs: FakePacs) -> None:
    image = organs(pacs)
    answer = client.get(f"/datastore/image?image={image}")
    assert answer.status_code == 200
    mask = inferred(client, image, "image", result_extension=".nrrd")
    params = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
    sent = client.put(
        f"/datastore/label?image={image}",
        data={"params": json.dumps({**params, "model": "esp_medsam_ct_organs"})},
        files={"label": ("label.nrrd", mask.content)},
    )
    assert sent.status_code == 200, sent.text
    assert client.get("/info/").json()["datastore"]["completed"] == 1
    store_of(app).outbox.send_all()
    (stored,) = pacs.segmentations()
    algorithm = stored.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "ESP-MedSAM ct_organs"
    assert stored.SegmentSequence[1].SegmentAlgorithmType == "SEMIAUTOMATIC"
    back = client.get(f"/datastore/label?label={image}&tag=final")
    assert back.status_code == 200
    assert client.get("/datastore/?output=all").status_code == 200
    assert client.delete(f"/datastore/label?id={image}&tag=final").status_code == 200
    assert client.get("/info/").json()["datastore"]["completed"] == 0


@pytest.mark.filterwarnings("ignore")
def test_damaged_dicom_by_every_way(
    client: TestClient, app: EspMedSamApp, pacs: FakePacs, tmp_path: Path, temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stored through the proxy in a PACS that takes anything, and sent as image and as label."""
    image = organs(pacs)
    store = store_of(app)
    label = nib.load(store.get_image_uri(image))
    voxels = (np.asanyarray(label.dataobj) == 200).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, label.affine), tmp_path / "label.nii.gz")
    drawn = store.dicom_seg(image, tmp_path / "label.nii.gz", CT)
    samples = {"ct.dcm": encoded(pacs.instances[-1]), "seg.dcm": encoded(drawn)}
    monkeypatch.setattr(pacs, "_store", lambda request, body: pacs._json(request, {}))
    monkeypatch.setattr(endpoints, "dependency_overrides", {})
    door = FrontDoor(DoorSettings(_env_file=None, infer_queue=100))
    fuzz = Fuzz(5, samples, image)
    requests = [fuzz.stored() for _ in range(100)] + [fuzz.upload() for _ in range(150)]
    with opened_files() as opened:
        statuses = send(door, requests, [str(tmp_path).encode(), sys.prefix.encode()])
    assert statuses[503] == 0
    assert statuses[200] > 50
    assert statuses[422] > 50
    data = [tmp_path / name for name in ("app", "cache", "sessions")]
    assert opened.outside(*data, temporary) == []
    assert list(temporary.iterdir()) == []


def test_images_are_not_uploaded_to_a_pacs(client: TestClient) -> None:
    answer = client.put("/datastore/image?image=x", files={"file": ("x.nii.gz", b"x")})
    assert answer.status_code == 405


def test_the_model_that_reads_the_modality_tells_its_labels_only(
    app: EspMedSamApp, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its label map has the ids of all modalities together; the segments are the modality's own."""
    image = organs(pacs)
    source = nib.load(store_of(app).get_image_uri(image))
    voxels = np.zeros(source.shape, np.uint8)
    voxels[4:9, 3:7, 2:4] = 9
    file = tmp_path / "all_ids.nii.gz"
    nib.save(nib.Nifti1Image(voxels, source.affine), file)
    told = {"modality": "ct_organs", "modality_labels": {"liver": 4, "spleen": 9}}
    app._infers["esp_medsam"] = cast(Any, SimpleNamespace(modalities={"ct_organs": CT}))
    monkeypatch.setattr(app, "infer", lambda request: {"file": str(file), "params": told})
    content, answer = dicom_seg_of(app, {"model": "esp_medsam", "image": image})
    assert answer == told
    dataset = pydicom.dcmread(BytesIO(content))
    assert head_of(dataset).names == {1: "liver", 2: "spleen"}
    grid = read_image(store_of(app).original(image)).grid
    assert np.array_equal(labels_on(dataset, grid) == 2, voxels == 9)
    assert not file.exists()
