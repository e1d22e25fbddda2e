"""Bodies of requests: as large as they may be, as slow as they may be."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from esp_medsam_app.errors import FullDiskError
from esp_medsam_app.server.disks import STUDIES, TEMPORARY, Disks
from esp_medsam_app.server.door.bodies import BODY, Bodies
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError

MB = 1 << 20
Usage = namedtuple("Usage", "total used free")


def read(
    messages: list[Any], headers: dict[str, str] | None = None, **limits: float
) -> list[bytes]:
    """What an application behind gets, message by message."""
    folder = Path(tempfile.gettempdir())
    got: list[bytes] = []
    script = iter(messages)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := scope[BODY].next_message()) is not None:
            got.append(message["body"])
            assert message["more_body"] is (len(b"".join(got)) < scope[BODY].size)

    async def receive() -> Any:
        message = next(script)
        if message == "silence":
            await asyncio.Event().wait()
        return message

    disks = Disks(limits.pop("min_free_mb", 0), lambda: {TEMPORARY: folder, STUDIES: folder})
    settings = {"max_upload_mb": 4, "max_json_kb": 1, "upload_seconds": 5}
    bodies = Bodies(app, disks, **{**settings, **limits})
    raw = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    scope = {"type": "http", "method": "PUT", "path": "/datastore/image", "headers": raw}
    asyncio.run(bodies(scope, receive, None))  # type: ignore[arg-type]
    return got


def part(content: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


UPLOAD = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1, 3 * MB + 7])
def test_what_is_sent_in_parts_arrives_as_it_was(size: int, temporary: Path) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]
    parts = [part(content[at : at + 100_000]) for at in range(0, size, 100_000)]
    assert b"".join(read([*parts, part(b"", more=False)], UPLOAD)) == content
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("told", [{}, {"content-length": str(5 * MB)}])
def test_too_much_is_refused_whether_announced_or_not(told: dict[str, str]) -> None:
    with pytest.raises(RefusedError, match="4 MB at most") as caught:
        read([part(bytes(MB))] * 6, {**UPLOAD, **told})
    assert caught.value.status == 413


def test_what_is_no_upload_has_to_be_small() -> None:
    with pytest.raises(RefusedError, match="1 kB at most"):
        read([part(bytes(2000), more=False)], {"content-type": "application/json"})


def test_a_client_that_falls_silent_is_not_waited_for() -> None:
    with pytest.raises(RefusedError) as caught:
        read([part(b"x"), "silence"], UPLOAD, upload_seconds=0.01)
    assert caught.value.status == 408


def test_a_client_that_leaves_is_not_answered() -> None:
    with pytest.raises(ClientLeftError):
        read([part(b"x"), {"type": "http.disconnect"}], UPLOAD)


@pytest.mark.parametrize("length", ["-1", "x", "1e9", "²"])
def test_a_length_that_is_none(length: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read([], {"content-length": length.encode().decode("latin-1")})
    assert caught.value.status == 400


def test_no_upload_fills_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * MB, 90 * MB, 10 * MB))
    told = {**UPLOAD, "content-length": str(2 * MB)}
    assert read([part(b"x", more=False)], told) == [b"x"]
    with pytest.raises(FullDiskError, match="temporary files"):
        read([part(b"x", more=False)], told, min_free_mb=5)


def test_a_large_image_arrives_and_leaves_nothing_behind(
    enter: Callable[..., TestClient], studies: Path, temporary: Path
) -> None:
    door = enter(max_upload_mb=3)

    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        yield from [bytes(MB)] * 4

    answers = [
        door.put("/datastore/image", content=parts(), headers=UPLOAD),
        door.put("/datastore/image", files={"file": ("a.png", bytes(4 * MB))}),
    ]
    for answer in answers:
        assert answer.status_code == 413
        assert "3 MB at most" in answer.json()["detail"]
    content = (studies / "photo.png").read_bytes()
    padded = content + bytes(2 * MB)
    assert door.put("/datastore/image", files={"file": ("b.png", padded)}).status_code == 200
    assert (studies / "b.png").read_bytes() == padded
    assert list(temporary.iterdir()) == []
