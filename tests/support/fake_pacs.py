"""A DICOMweb archive in this process, which can be slow, frozen, picky or forgetful."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset

_BOUNDARY = "fake-pacs"
_OF_SERIES = (
    "StudyInstanceUID", "SeriesInstanceUID", "Modality", "PatientID", "StudyDate", "StudyTime",
    "SeriesDescription", "BodyPartExamined",
)  # fmt: skip


class FakePacs:
    """QIDO-RS, WADO-RS and STOW-RS for what is in memory.

    Attributes:
        instances: all there are.
        asked: method and path of every request, in order.
        frozen: set, it takes connections and never answers.
        lost: UIDs of instances that it lists, but does not send.
        password: of the user `doctor`, if it wants one.
        broken: set, every answer is HTTP 500.
        cut: so many bytes are missing at the end of a series; the answer does not tell its length.
        stall: after so many bytes of an answer nothing more comes, and the connection stays.
    """

    def __init__(self, instances: Iterable[Dataset] = ()) -> None:
        self.instances: list[Dataset] = list(instances)
        self.asked: list[str] = []
        self.frozen = threading.Event()
        self.closing = threading.Event()
        self.lost: set[str] = set()
        self.password = ""
        self.broken = False
        self.cut = 0
        self.stall = 0
        self.page = 10_000
        pacs = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pacs._answer(self)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                """Silence."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Of the DICOMweb root."""
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def segmentations(self) -> list[Dataset]:
        """What has been stored of those."""
        return [dataset for dataset in self.instances if dataset.Modality == "SEG"]

    def close(self) -> None:
        """No more answers; the port refuses connections."""
        if self.closing.is_set():
            return
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(f"{request.command} {request.path}")
        body = self._body(request)
        if self.closing.is_set():
            request.close_connection = True
            return
        if self.frozen.is_set():
            self.closing.wait()
            request.close_connection = True
            return
        known = request.headers.get("Authorization", "")
        expected = base64.b64encode(f"doctor:{self.password}".encode()).decode()
        if self.password and known != f"Basic {expected}":
            return _send(request, 401, "text/plain", b"no")
        if self.broken:
            return _send(request, 500, "text/plain", b"no")
        path, query = urlsplit(request.path).path, parse_qs(urlsplit(request.path).query)
        if request.command == "POST":
            return self._store(request, body)
        if path.endswith("/dicom-web/series"):
            return self._json(request, self._series(query))
        one = re.search(r"/instances/([^/]+)/metadata$", path)
        if one is not None:
            own = [_without_bulk(d) for d in self.instances if d.SOPInstanceUID == one[1]]
            return self._json(request, [d.to_json_dict() for d in own])
        found = re.search(r"/studies/([^/]+)/series/([^/]+)(/\w+)?$", path)
        members = [d for d in self.instances if found and d.SeriesInstanceUID == found[2]]
        if found is None or not members:
            return _send(request, 404, "text/plain", b"no")
        if found[3] == "/metadata":
            plain = [_without_bulk(dataset) for dataset in members]
            return self._json(request, [d.to_json_dict() for d in plain])
        if found[3] == "/instances":
            listed = [_only(d, ("SOPInstanceUID", "SOPClassUID")) for d in members]
            return self._json(request, self._paged(listed, query))
        parts = b"".join(
            b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n"
            % (_BOUNDARY.encode(), encoded(dataset))
            for dataset in members
            if dataset.SOPInstanceUID not in self.lost
        )
        kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
        whole = parts + b"--%s--\r\n" % _BOUNDARY.encode()
        if self.cut:
            return _send(request, 200, kind, whole[: -self.cut], told=False)
        return self._whole(request, kind, whole)

    def _series(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        found: dict[str, list[Dataset]] = {}
        for dataset in self.instances:
            if all(
                str(dataset.get(name, "")) == values[0]
                for name, values in query.items()
                if name in _OF_SERIES
            ):
                found.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
        answers = []
        for members in found.values():
            item = _only(members[0], _OF_SERIES)
            count = Dataset()
            count.NumberOfSeriesRelatedInstances = len(members)
            answers.append({**item, **count.to_json_dict()})
        return self._paged(answers, query)

    def _paged(self, items: list[Any], query: dict[str, list[str]]) -> list[Any]:
        first = int(query.get("offset", ["0"])[0])
        limit = min(self.page, int(query.get("limit", [str(len(items))])[0]))
        return items[first : first + limit]

    def _store(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        boundary = request.headers["Content-Type"].split("boundary=")[1].strip('"')
        for part in body.split(f"--{boundary}".encode()):
            content = part.partition(b"\r\n\r\n")[2]
            if content:
                dataset = pydicom.dcmread(BytesIO(content))
                self.instances = [
                    d for d in self.instances if d.SOPInstanceUID != dataset.SOPInstanceUID
                ]
                self.instances.append(dataset)
        self._json(request, {})

    def _body(self, request: BaseHTTPRequestHandler) -> bytes:
        if request.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(request.rfile.readline(), 16):
                chunks.append(request.rfile.read(size))
                request.rfile.readline()
            request.rfile.readline()
            return b"".join(chunks)
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))

    def _json(self, request: BaseHTTPRequestHandler, content: Any) -> None:
        self._whole(request, "application/dicom+json", json.dumps(content).encode())

    def _whole(self, request: BaseHTTPRequestHandler, kind: str, body: bytes) -> None:
        if not self.stall:
            return _send(request, 200, kind, body)
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.stall])
        request.wfile.flush()
        self.closing.wait()
        request.close_connection = True


def encoded(dataset: Dataset) -> bytes:
    """A data set as a DICOM file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, write_like_original=False)
    return buffer.getvalue()


def _only(dataset: Dataset, names: Iterable[str]) -> dict[str, Any]:
    kept = Dataset()
    for name in names:
        if name in dataset:
            setattr(kept, name, dataset.get(name))
    return kept.to_json_dict()


def _without_bulk(dataset: Dataset) -> Dataset:
    kept = Dataset()
    for element in dataset:
        if element.tag != 0x7FE00010:
            kept.add(element)
    return kept


def _send(
    request: BaseHTTPRequestHandler, status: int, kind: str, body: bytes, told: bool = True
) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    if told:
        request.send_header("Content-Length", str(len(body)))
    else:
        request.send_header("Connection", "close")
        request.close_connection = True
    request.end_headers()
    request.wfile.write(body)
