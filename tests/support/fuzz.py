"""Draws bad requests from a seed, sends them, and looks at what comes back and what is written.

A request that fails can be sent again by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from support.asgi_calls import Answered, Raw, call

from esp_medsam_app.server.asgi import FrontDoor

AT_ONCE = 4
SECONDS = 600
# never read, whatever is asked for
PASSWORDS = "/etc/passwd"

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
# what the server itself notes of images and labels
NOTED = [
    "ts", "name", "strategy", "predicted", "modality", "SOPInstanceUID", "problem", "instances",
    "dice", "dice_of", "voxels", "submitted_label_info", "user", "path", "uncertainty",
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "POST", "PUT", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"]


class Fuzz:
    """Draws requests.

    Args:
        seed: of all that is drawn.
        samples: sound files by name.
        image: the id of an image that there is.
    """

    def __init__(self, seed: int, samples: dict[str, bytes], image: str = "case") -> None:
        self.random = random.Random(seed)
        self.samples = samples
        self.image = image

    def request(self) -> Raw:
        method = self.random.choice(METHODS)
        query = self.query()
        if method == "DELETE":
            # a removal that is asked for properly is no bad request
            for image in ("case", "photo", self.image):
                query = query.replace(image.encode(), b"nobody")
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
        query = b"image=" + self.image.encode() if field == "label" else b""
        if path == "/session/" and self.random.random() < 0.5:
            query = b"uncompress=true"
        parts = [self.part(field, content, name)]
        return Raw(method, path, query, *self.form(parts))

    def notes(self) -> Raw:
        """A sound label map, or nothing, and bad words about it."""
        tag = self.random.choice([b"final", b"original", b"x"])
        image = b"image=" + self.image.encode()
        where = b"label=" + self.image.encode() + b"&tag=" + tag
        method, path, query, field = self.random.choice(
            [("PUT", "/datastore/label", image + b"&tag=" + tag, "params"),
             ("PUT", "/datastore/label/info", where, "info"),
             ("PUT", "/datastore/image/info", image, "info"),
             ("POST", "/infer/esp_medsam_ct_organs", image, "params")]
        )  # fmt: skip
        parts = [self.part(field, self.told())]
        if path == "/datastore/label":
            parts.append(self.part("label", self.samples["label.nii.gz"], "label.nii.gz"))
        return Raw(method, path, query, *self.form(parts))

    def told(self) -> bytes:
        """What a viewer tells of a label map, with something odd in it."""
        told = {
            name: self.value() if self.random.random() < 0.5 else usual
            for name, usual in (
                ("label_info", [{"name": "liver", "idx": 1}]),
                ("model", "esp_medsam_ct_organs"),
                ("params", {"label_names": self.value()}),
                (self.random.choice(NOTED), self.value()),
            )
            if self.random.random() < 0.6
        }
        return json.dumps(told).encode()

    def stored(self) -> Raw:
        """DICOM instances for the PACS, some of them damaged."""
        names = [name for name in sorted(self.samples) if name.endswith(".dcm")]
        found = [
            self.samples[self.random.choice(names)] for _ in range(self.random.randrange(1, 4))
        ]
        parts = [one if self.random.random() < 0.3 else self.damaged(one) for one in found]
        start = b"--x\r\nContent-Type: application/dicom\r\n\r\n"
        body = b"".join(start + part + b"\r\n" for part in parts) + b"--x--"
        kind = self.random.choice(
            ['multipart/related; type="application/dicom"; boundary=x', "multipart/related",
             "multipart/related; boundary=", "multipart/related; boundary=\xff"]
        )  # fmt: skip
        path = self.random.choice(["/proxy/dicom/studies", "/proxy/dicom/stow/studies"])
        return Raw("POST", path, b"", (("content-type", kind),), body)

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


_CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link"}


class Opened:
    """Files that are opened, made or moved while a block runs, by Python's own account."""

    def __init__(self) -> None:
        self.written: set[Path] = set()
        self.read: set[str] = set()
        self.watching = False

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook, which stays for ever."""
        if not self.watching:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | os.PathLike):
                return
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._noted(path)
            else:
                self.read.add(os.fsdecode(path))
        elif event in _CHANGES and arguments[-1] == -1:
            # else within a folder that was opened before: of no name by itself
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                self._noted(path)

    def _noted(self, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.abspath(os.fsdecode(path))
        if "__pycache__" not in place and not place.startswith("/dev/"):
            self.written.add(Path(place))

    def outside(self, *folders: Path) -> list[Path]:
        """What was written elsewhere than in these folders."""
        return [
            path
            for path in sorted(self.written)
            if not any(path == folder or path.is_relative_to(folder) for folder in folders)
        ]


_OPENED: list[Opened] = []


@contextmanager
def opened_files() -> Iterator[Opened]:
    """Watches what this process opens."""
    if not _OPENED:
        sys.addaudithook(lambda event, arguments: _OPENED[0].note(event, arguments))
        _OPENED.append(Opened())
    _OPENED[0] = watched = Opened()
    watched.watching = True
    try:
        yield watched
    finally:
        watched.watching = False


def send(door: FrontDoor, requests: list[Raw], secrets: list[bytes]) -> Counter[int]:
    """Send all requests, several at once; how often which status came back."""
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    waiting = iter(requests)

    async def worker() -> None:
        for request in waiting:
            answer = await look_at(request)
            if (request.method, request.path, answer.status) == ("PUT", "/session/", 200):
                made = json.loads(answer.body)["session_id"].encode()
                await look_at(Raw("POST", "/infer/esp_medsam_ct_organs", b"session_id=" + made))

    async def look_at(request: Raw) -> Answered:
        answer = await asyncio.wait_for(call(door, request), SECONDS)
        statuses[answer.status] += 1
        wrong = wrong_with(answer, secrets)
        if wrong:
            failures.append(f"{wrong}: {request} -> {answer.body[:300]!r}")
        return answer

    async def all_workers() -> None:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    asyncio.run(all_workers())
    assert failures == [], "\n".join(failures[:10])
    return statuses
