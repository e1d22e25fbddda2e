"""The way to the PACS: DICOMweb as it was asked for, and nothing else of the PACS."""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from monailabel.config import settings as monai_settings
from monailabel.interfaces.utils import app as registry
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from esp_medsam_app.errors import UnknownNameError
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.door.dicom_proxy import target
from esp_medsam_app.server.door.refusal import RefusedError

PIXELS = bytes(range(256)) * 4


class Pacs:
    """Answers what it was asked, and keeps how."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status = 200
        self.silent = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                sent = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append((self.command, self.path, sent, body))
                if outer.silent.is_set():
                    threading.Event().wait(2)
                self.send_response(outer.status)
                self.send_header("Content-Type", "application/dicom")
                self.send_header("Set-Cookie", "session=secret")
                self.send_header("Location", "http://elsewhere.example/")
                self.end_headers()
                self.wfile.write(PIXELS)

            do_GET = do_POST = do_DELETE = do_PUT = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/dicom-web"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    found = Pacs()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.stop()
    thread.join()


@pytest.fixture
def served_from(
    pacs: Pacs, app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch
) -> Callable[[TestClient], TestClient]:
    """Makes a server take its studies from the PACS."""

    def change(client: TestClient) -> TestClient:
        monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", pacs.url)
        monkeypatch.setitem(registry.apps, f"{app.app_dir}{pacs.url}", app)
        return client

    return change


Served = Callable[[TestClient], TestClient]


@pytest.mark.parametrize(
    "path",
    [
        "studies?PatientID=7&limit=3&includefield=00081030",
        "studies?PatientName=M%C3%BCller%2A",
        "studies/1.2.3/series?Modality=CT",
    ],
)
def test_a_search_reaches_the_pacs_as_it_was_asked(
    either: TestClient, pacs: Pacs, served_from: Served, path: str
) -> None:
    assert served_from(either).get(f"/proxy/dicom/qido/{path}").status_code == 200
    assert [asked for _, asked, _, _ in pacs.asked] == [f"/dicom-web/{path}"]


@pytest.mark.parametrize(
    "path",
    [
        "wado/studies/1.2.3/series/4.5/instances/6.7/frames/1,2",
        "wado/studies/1.2.3/series/4.5/metadata",
        "wado/studies/1.2.3/series/4.5/instances/6.7/bulkdata/00420011",
    ],
)
def test_images_come_from_the_pacs(
    door: TestClient, pacs: Pacs, served_from: Served, path: str
) -> None:
    response = served_from(door).get(f"/proxy/dicom/{path}", headers={"accept": "x/y"})
    assert response.status_code == 200
    assert response.content == PIXELS
    ((_, asked, sent, _),) = pacs.asked
    assert asked == f"/dicom-web/{path.removeprefix('wado/')}"
    assert sent["accept"] == "x/y"
    # neither the PACS' cookies nor its redirections
    assert "set-cookie" not in response.headers
    assert "location" not in response.headers


BEYOND = [
    "%2e%2e/system", "qido/%2e%2e/%2e%2e/system",
    "..%2f..%2ftools/find", "studies/%2e%2e/%2e%2e/patients", "studies/1.2/%2e%2e/%2e%2e/system",
    "%252e%252e/system", "studies/%2e%2e", "studies/1.2.3/archive", "studies/1.2.3/series/%2e%2e",
    "studies/1.2.3%00", "studies/1.2.3%0a", "studies//", "patients", "", "wado/", "system",
    "studies/1.2.3/series/4/instances/5/bulkdata/%2e%2e", "studies/1.2.3/series/4/instances/5/file",
    "studies/" + "1" * 65, "servers/1/metadata",
]  # fmt: skip


@pytest.mark.parametrize("path", BEYOND)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_else_of_the_pacs_is_reached(
    door: TestClient, pacs: Pacs, served_from: Served, path: str, method: str
) -> None:
    headers = {"content-type": "multipart/related; type=x"}
    response = served_from(door).request(method, f"/proxy/dicom/{path}", headers=headers)
    assert response.status_code == 404
    assert pacs.asked == []


@pytest.mark.xfail(strict=True, reason="MONAI Label 0.8.5 asks for /system")
def test_in_monai_label_all_of_the_pacs_is_reached(
    client: TestClient, pacs: Pacs, served_from: Served
) -> None:
    served_from(client).get("/proxy/dicom/%2e%2e/system")
    assert [asked for _, asked, _, _ in pacs.asked if "system" in asked] == []


@given(st.text(alphabet="./%2eEfF0studie\\;?#:@ ", max_size=40), st.sampled_from(["GET", "POST"]))
def test_no_path_leads_out(path: str, method: str) -> None:
    before = monai_settings.MONAI_LABEL_STUDIES
    monai_settings.MONAI_LABEL_STUDIES = "http://pacs/dicom-web"
    try:
        url = target(f"/proxy/dicom/{path}", method, b"")
    except RefusedError:
        return
    finally:
        monai_settings.MONAI_LABEL_STUDIES = before
    rest = url.removeprefix("http://pacs/dicom-web/")
    assert rest != url
    assert ".." not in rest.split("/")
    assert not set(rest) & set("%\\;?#:@ ")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_the_pacs_is_only_read_and_stored_to(
    door: TestClient, pacs: Pacs, served_from: Served, method: str
) -> None:
    assert served_from(door).request(method, "/proxy/dicom/studies/1.2.3").status_code == 405
    assert pacs.asked == []


def test_instances_are_stored(
    door: TestClient, pacs: Pacs, served_from: Served, audited: Callable[[], Any]
) -> None:
    door = served_from(door)
    related = {"content-type": 'multipart/related; type="application/dicom"; boundary=x'}
    content = b"--x\r\n\r\n" + PIXELS * 100 + b"\r\n--x--"
    headers = {**related, "authorization": "Bearer the viewer's", "cookie": "a=b"}
    response = door.post("/proxy/dicom/stow/studies", content=content, headers=headers)
    assert response.status_code == 200
    ((method, path, sent, body),) = pacs.asked
    assert (method, path, body) == ("POST", "/dicom-web/studies", content)
    assert sent["content-type"] == related["content-type"]
    assert not {"authorization", "cookie"} & set(sent)
    assert audited()[-1]["action"] == "dicom.store"
    assert door.post("/proxy/dicom/studies", json={"a": 1}).status_code == 415


@pytest.mark.parametrize("name", ["accept", "content-type", "range", "if-none-match"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_headers_that_cannot_be_sent_on(
    door: TestClient, pacs: Pacs, served_from: Served, method: str, name: str
) -> None:
    headers = {"content-type": "multipart/related; boundary=x", name: b"multipart/related; \xff"}
    answer = served_from(door).request(method, "/proxy/dicom/studies", headers=headers)
    assert answer.status_code == 400
    assert "header" in answer.json()["detail"]
    assert pacs.asked == []


def test_too_much_at_once_is_not_stored(
    enter: Callable[..., TestClient], pacs: Pacs, served_from: Served
) -> None:
    door = served_from(enter(max_upload_mb=0.001))
    headers = {"content-type": "multipart/related; boundary=x"}
    for content in (bytes(2000), iter([bytes(2000)])):
        response = door.post("/proxy/dicom/studies", content=content, headers=headers)
        assert response.status_code == 413


@pytest.mark.parametrize("names", ["DICOMWEB", "DATASTORE"])
def test_the_pacs_user_goes_along(
    door: TestClient, pacs: Pacs, served_from: Served, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    monkeypatch.setattr(monai_settings, f"MONAI_LABEL_{names}_USERNAME", "orthanc")
    monkeypatch.setattr(monai_settings, f"MONAI_LABEL_{names}_PASSWORD", "secret")
    assert served_from(door).get("/proxy/dicom/qido/studies").status_code == 200
    assert pacs.asked[0][2]["authorization"] == "Basic b3J0aGFuYzpzZWNyZXQ="


def test_errors_and_redirections_of_the_pacs_are_not_followed(
    door: TestClient, pacs: Pacs, served_from: Served
) -> None:
    door = served_from(door)
    pacs.status = 404
    assert door.get("/proxy/dicom/studies/1.2").status_code == 404
    pacs.status = 302
    response = door.get("/proxy/dicom/studies/1.2", follow_redirects=False)
    assert response.status_code == 302
    assert "location" not in response.headers
    assert len(pacs.asked) == 2


def test_a_pacs_that_is_frozen_or_gone_is_told(
    make_door: Callable[..., Any], pacs: Pacs, served_from: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.2)
    door = served_from(TestClient(make_door(), raise_server_exceptions=False))
    pacs.silent.set()
    frozen = door.get("/proxy/dicom/qido/studies")
    assert frozen.status_code == 504
    assert "does not answer in time" in frozen.json()["detail"]
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9/dicom-web")
    gone = door.get("/proxy/dicom/qido/studies")
    assert gone.status_code == 503
    assert "127.0.0.1" not in gone.text


def test_google_s_token(
    door: TestClient, pacs: Pacs, served_from: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esp_medsam_app.server.door import dicom_proxy

    monkeypatch.setattr(dicom_proxy, "_google_token", lambda: "of google")
    door = served_from(door)
    url = f"{pacs.url}/googleapis.com"
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", url)
    assert door.get("/proxy/dicom/qido/studies").status_code == 200
    assert pacs.asked[0][2]["authorization"] == "Bearer of google"


def test_no_log_has_what_viewers_search_for(
    door: TestClient, pacs: Pacs, served_from: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = served_from(door).get("/proxy/dicom/qido/studies?PatientName=*Mueller*")
    assert answer.status_code == 200
    assert "Mueller" in pacs.asked[0][1]
    # the test's own client notes what it asks for as well, but by another address
    assert [line for line in caplog.messages if "Mueller" in line and pacs.url in line] == []


def test_prefixes_of_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", "http://pacs/")
    for service in ("WADO", "QIDO", "STOW"):
        name = f"MONAI_LABEL_{service}_PREFIX"
        monkeypatch.setattr(monai_settings, name, service.lower() + "-rs")
    base = "/proxy/dicom/"
    assert target(base + "qido/studies", "GET", b"a=1") == "http://pacs/qido-rs/studies?a=1"
    assert target(base + "wado/studies/1", "GET", b"") == "http://pacs/wado-rs/studies/1"
    assert target(base + "stow/studies", "POST", b"") == "http://pacs/stow-rs/studies"
    # OHIF stores where it reads
    assert target(base + "wado/studies", "POST", b"") == "http://pacs/stow-rs/studies"
    assert target(base + "studies", "POST", b"") == "http://pacs/studies"
    # some OHIF asks for metadata by the wrong service
    metadata = "studies/1/series/2/metadata"
    assert target(f"{base}qido/{metadata}", "GET", b"") == f"http://pacs/wado-rs/{metadata}"
    assert target(base + "studies", "GET", b"") == "http://pacs/studies"


def instance(kind: str, number: int) -> bytes:
    """A DICOM file of a storage class."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = kind, f"1.2.{number}"
    dataset.PatientName = "a\r\n--x"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    buffer = BytesIO()
    dataset.save_as(buffer, write_like_original=False)
    return buffer.getvalue()


@pytest.mark.parametrize("status", [200, 409])
def test_segmentations_that_ohif_exports_are_labels(
    door: TestClient, pacs: Pacs, served_from: Served, app: EspMedSamApp,
    audited: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, status: int,
) -> None:  # fmt: skip
    received, saved = [], []

    def receive(dataset: Dataset) -> str:
        received.append(dataset.SOPInstanceUID)
        if dataset.SOPInstanceUID == "1.2.3":
            raise UnknownNameError("of no image here")
        return "the image"

    monkeypatch.setattr(app.datastore(), "receive", receive, raising=False)
    monkeypatch.setattr(app, "on_save_label", lambda *ids: saved.append(ids))
    ct, seg = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
    parts = [instance(ct, 1), instance(seg, 2), instance(seg, 3), b"damaged", instance(seg, 4)]
    between = b"--a b\r\nContent-Type: application/dicom\r\n\r\n"
    content = b"".join(between + part + b"\r\n" for part in parts) + b"--a b--"
    pacs.status = status
    headers = {"content-type": 'multipart/related; type="application/dicom"; boundary="a b"'}
    answer = served_from(door).post("/proxy/dicom/studies", content=content, headers=headers)
    assert answer.status_code == status
    assert pacs.asked[0][3] == content
    actions = [line["action"] for line in audited()]
    if status == 200:
        assert received == ["1.2.2", "1.2.3", "1.2.4"]
        assert saved == [("the image", "the image")] * 2
        assert actions == ["dicom.store", "label.save", "label.save"]
    else:
        assert (received, actions) == ([], ["dicom.store"])
