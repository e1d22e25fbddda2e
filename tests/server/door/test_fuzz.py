"""Thousands of bad requests: no 500, no traceback, no server path, no file where none belongs.

What is sent is drawn from a seed: a request that fails can be sent again by itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monailabel.utils.async_tasks import task as async_task
from PIL import Image
from support.asgi_calls import Answered, Raw, call
from support.fake_server import AFFINE

from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.asgi import FrontDoor

REQUESTS, UPLOADS = 2400, 600
AT_ONCE = 4
SECONDS = 600

TEXTS = [
    "", " ", ".", "..", "../..", "../../etc/passwd", "..\\..\\x", "/etc/passwd", "//", "~",
    "%2e%2e", "%00", "a\0b", "\0", "\n", "a\r\nSet-Cookie: x=y", "é", "\U0001d4b3" * 9, "\u202e",
    "x" * 5000, "' OR 1=1 --", "<script>alert(1)</script>", "${jndi:ldap://x}", "{{7*7}}", "{",
    "}", "[]", "{}", "null", "NaN", "-1", "0", "1e999", "9" * 40, "true",
    "case", "photo", "final", "original", "case.nii.gz", "C:\\x",
    "file:///etc/passwd", "http://127.0.0.1:9/", "2024-13-45", "all",
]  # fmt: skip
BYTES = [b"%ED%A0%80", b"%FF%FE", b"%", b"%zz", b"a=b=c", b"&&&", b"=", b"\xff\xfe"]
PARAMETERS = [
    "image", "label", "tag", "id", "session_id", "output", "check_sum", "limit_cases", "lines",
    "html", "text", "refresh", "uncompress", "expiry", "update_ts", "run_sync", "enqueue", "images",
    "serve", "number", "all", "check_if_running", "strategy", "model", "params",
]  # fmt: skip
FIELDS = ["params", "info", "file", "label", "files", "wsi", "label_info", "username", "password"]
OPTIONS = [
    "result_extension", "result_dtype", "result_compress", "label_prompt", "device", "logging",
    "save_label", "label_tag", "label_info", "model", "image", "max_epochs", "gpus", "images",
    "max_workers", "strategy", "client_id", "bundle_path", "timeout", "val_split", "method",
]  # fmt: skip
FIRST = [
    "infer", "train", "batch", "scoring", "datastore", "session", "model", "logs", "ohif", "proxy",
    "static", "info", "activelearning", "auth", "versions", "reload", "docs", "healthz", "metrics",
    "openapi.json", "", "nowhere",
]  # fmt: skip
SECOND = [
    "esp_medsam_ct_organs", "esp_medsam_spots", "esp_medsam_knee", "image", "label", "dataset",
    "image/info", "label/info", "updatelabelinfo", "infer/esp_medsam_spots", "infer", "dicom",
    "dicom/wado/studies", "dicom/../system", "dicom/qido/studies", "gpu", "random", "uncertainty",
    "dice", "sum", "wsi/x", "wsi_v2/esp_medsam_spots", "ohif/index.html", "token", "token/valid",
    "info/esp_medsam_spots", "00000000-0000-0000-0000-000000000000", "spots/restore",
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "POST", "PUT", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"]
# what a client may do to the studies with the right words
CHANGES = {"case", "photo"}


class Fuzz:
    """Draws requests."""

    def __init__(self, seed: int, samples: dict[str, bytes]) -> None:
        self.random = random.Random(seed)
        self.samples = samples

    def request(self) -> Raw:
        method = self.random.choice(METHODS)
        query = self.query()
        if method == "DELETE":
            # a removal that is asked for properly is no bad request
            query = query.replace(b"case", b"nobody").replace(b"photo", b"nobody")
        headers, body = self.random.choice([self.nothing, self.json, self.multipart, self.odd])()
        if self.random.random() < 0.1:
            headers = (
                *headers,
                (self.random.choice(["range", "accept", "cookie", "x-y"]), "\xff,"),
            )
        return Raw(method, self.path(), query, headers, body)

    def upload(self) -> Raw:
        """A damaged file where an image is awaited."""
        name = self.random.choice(sorted(self.samples))
        content = self.damaged(self.samples[name])
        method, path, field = self.random.choice(
            [("POST", "/infer/esp_medsam_ct_organs", "file"), ("PUT", "/session/", "files"),
             ("PUT", "/datastore/label", "label"), ("PUT", "/datastore/image", "file"),
             ("PUT", "/model/esp_medsam_spots", "file")]
        )  # fmt: skip
        query = b"image=case" if field == "label" else b""
        if path == "/session/" and self.random.random() < 0.5:
            query = b"uncompress=true"
        parts = [self.part(field, content, name)]
        return Raw(method, path, query, *self.form(parts))

    def path(self) -> str:
        parts = [self.random.choice(FIRST)]
        if self.random.random() < 0.8:
            choice = self.random.choice([*SECOND, self.text()])
            parts.append(quote_from_bytes(choice.encode("utf-8", "replace"), safe="/%"))
        if self.random.random() < 0.1:
            parts.append(quote_from_bytes(self.text().encode(), safe=self.random.choice(["", "/"])))
        return "/" + "/".join(parts) + self.random.choice(["", "", "/"])

    def query(self) -> bytes:
        pairs = []
        for _ in range(self.random.choice([0, 1, 1, 2, 3])):
            value = quote_from_bytes(self.text().encode()).encode()
            if self.random.random() < 0.15:
                value = self.random.choice(BYTES)
            pairs.append(self.random.choice(PARAMETERS).encode() + b"=" + value)
        return b"&".join(pairs)

    def text(self) -> str:
        return self.random.choice(TEXTS)

    def value(self, depth: int = 0) -> Any:
        kind = self.random.randrange(8 if depth < 3 else 6)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if kind == 7:
            count = self.random.randrange(4)
            return {
                self.random.choice([*OPTIONS, "x"]): self.value(depth + 1) for _ in range(count)
            }
        found = [None, True, -1, 10**30, 1.5, self.text()][kind]
        return float(self.random.choice(["nan", "inf", "-0"])) if found == 1.5 else found

    def document(self) -> bytes:
        kind = self.random.randrange(10)
        if kind == 0:
            return self.random.choice(
                [b"{", b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\x00", b'"\\ud800"',
                 b'{"a": "\\ud800"}', b'{"a\\u0000b": 1}', b"1e400", b"-", b'{"a":1}}', b"nul"]
            )  # fmt: skip
        if kind == 1:
            return json.dumps(self.value()).encode()
        count = self.random.randrange(5)
        return json.dumps(
            {self.random.choice(OPTIONS): self.value() for _ in range(count)}
        ).encode()

    def nothing(self) -> tuple[tuple[tuple[str, str], ...], bytes]:
        return (), b""

    def json(self) -> tuple[tuple[tuple[str, str], ...], bytes]:
        return (("content-type", "application/json"),), self.document()

    def odd(self) -> tuple[tuple[tuple[str, str], ...], bytes]:
        kinds = [
            "multipart/form-data", "multipart/form-data; boundary=", "application/xml",
            "multipart/form-data; boundary=" + "x" * 300, "application/x-www-form-urlencoded",
            "application/json; charset=utf-16", "multipart/related; boundary=x", "image/png",
            "text/plain", "\xff",
        ]  # fmt: skip
        body = self.random.choice(
            [b"--x\r\n", b"--\r\n\r\n", self.query(), self.random.randbytes(99)]
        )
        return (("content-type", self.random.choice(kinds)),), body

    def multipart(self) -> tuple[tuple[tuple[str, str], ...], bytes]:
        parts = []
        for _ in range(self.random.randrange(4)):
            field = self.random.choice(FIELDS)
            if self.random.random() < 0.5:
                parts.append(self.part(field, self.document()))
            else:
                content = self.random.choice(
                    [b"", self.random.randbytes(50), *self.samples.values()]
                )
                parts.append(self.part(field, self.damaged(content), self.text()))
        headers, body = self.form(parts)
        return headers, body if self.random.random() < 0.9 else body[: len(body) // 2]

    def part(self, field: str, content: bytes, name: str | None = None) -> bytes:
        told = f'; filename="{name}"'.encode("utf-8", "replace") if name is not None else b""
        told = told.replace(b"\r", b"").replace(b"\n", b"")
        start = f'--x\r\nContent-Disposition: form-data; name="{field}"'.encode()
        return start + told + b"\r\n\r\n" + content + b"\r\n"

    def form(self, parts: list[bytes]) -> tuple[tuple[tuple[str, str], ...], bytes]:
        return (("content-type", "multipart/form-data; boundary=x"),), b"".join(
            parts
        ) + b"--x--\r\n"

    def damaged(self, content: bytes) -> bytes:
        """The same cut off, with other bytes in it, or with something at its end."""
        kind = self.random.randrange(4)
        if kind == 0 or not content:
            return content[: self.random.randrange(len(content) + 1)]
        if kind == 1:
            return content + self.random.randbytes(20)
        changed = bytearray(content)
        early = len(changed) if kind == 2 else min(len(changed), 400)
        for _ in range(self.random.choice([1, 3, 30])):
            changed[self.random.randrange(early)] = self.random.randrange(256)
        return bytes(changed)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of each kind."""
    folder = tmp_path_factory.mktemp("samples")
    volume = np.zeros((6, 5, 4), np.int16)
    volume[1:3, 1:4, 1:3] = 1
    nib.save(nib.Nifti1Image(volume, AFFINE), folder / "a.nii.gz")
    nib.save(nib.Nifti1Image(volume, AFFINE), folder / "a.nii")
    for name in ("a.nrrd", "a.mha", "a.seg.nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(volume.T.astype(np.uint8)), str(folder / name))
    for name in ("a.png", "a.jpg", "a.tiff", "a.bmp"):
        Image.fromarray(volume[:, :, 1].astype(np.uint8)).save(folder / name)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that starts after all is not really started."""
    task = {"id": "1", "status": "DONE"}
    monkeypatch.setattr(async_task, "run_background_task", lambda request, method: dict(task))


def wrong_with(answer: Answered, secrets: list[bytes]) -> str:
    """What an answer must not be, if it is that."""
    if answer.status >= 500 and answer.status != 503:
        return f"status {answer.status}"
    if b"Traceback" in answer.body or b'File "/' in answer.body:
        return "a traceback"
    found = [secret for secret in secrets if secret in answer.body]
    if found:
        return f"tells {found[0]!r}"
    if answer.status >= 400 and answer.body:
        told = json.loads(answer.body)
        if not told.get("detail") or told["request_id"] != answer.headers["x-request-id"]:
            return "no reason or number"
    if any("\n" in value or "\r" in value for value in answer.headers.values()):
        return "a header within a header"
    return ""


def send(door: FrontDoor, requests: list[Raw], secrets: list[bytes]) -> Counter[int]:
    """Send all requests, several at once; how often which status came back."""
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    waiting = iter(requests)

    async def worker() -> None:
        for request in waiting:
            answer = await asyncio.wait_for(call(door, request), SECONDS)
            statuses[answer.status] += 1
            wrong = wrong_with(answer, secrets)
            if wrong:
                failures.append(f"{wrong}: {request} -> {answer.body[:300]!r}")

    async def all_workers() -> None:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    asyncio.run(all_workers())
    assert failures == [], "\n".join(failures[:10])
    return statuses


@pytest.mark.parametrize("seed", range(4))
def test_bad_requests(
    make_door: Callable[..., FrontDoor],
    app: EspMedSamApp,
    samples: dict[str, bytes],
    no_tasks: None,
    tmp_path: Path,
    studies: Path,
    temporary: Path,
    seed: int,
) -> None:
    fuzz = Fuzz(seed, samples)
    requests = [fuzz.request() for _ in range(REQUESTS // 4)]
    requests += [fuzz.upload() for _ in range(UPLOADS // 4)]
    fuzz.random.shuffle(requests)
    secrets = [str(place).encode() for place in (tmp_path, sys.prefix, Path(__file__).parents[3])]
    outside = {path for path in tmp_path.rglob("*") if path.is_file()}
    before = (studies / "case.nii.gz").read_bytes()
    statuses = send(make_door(infer_queue=100), requests, secrets)
    assert sum(statuses.values()) == len(requests)
    # bad requests are told to be bad, and those that are not are answered
    assert sum(count for status, count in statuses.items() if 400 <= status < 500) > 300
    assert statuses[200] > 20
    allowed = [studies, tmp_path / "sessions", tmp_path / "audit", tmp_path / "app"]
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - outside
    assert [path for path in new if not any(path.is_relative_to(a) for a in allowed)] == []
    assert list(temporary.iterdir()) == []
    assert (studies / "case.nii.gz").read_bytes() == before
    assert {"case", "photo"} <= set(app.datastore().list_images())
