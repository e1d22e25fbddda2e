"""Sessions through the front door, and archives of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from esp_medsam_app.data.archives import only_folder, unpack
from esp_medsam_app.errors import InputError

INFER = "/infer/esp_medsam_ct_organs"


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], *links: tuple[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def create(client: TestClient, *files: tuple[str, bytes], **query: Any) -> Any:
    return client.put("/session/", params=query, files=[("files", file) for file in files])


def test_a_session_from_start_to_end(
    door: TestClient, studies: Path, tmp_path: Path, temporary: Path
) -> None:
    content = (studies / "case.nii.gz").read_bytes()
    made = create(door, ("my case.nii.gz", content), expiry=600).json()
    session = f"/session/{made['session_id']}"
    assert made["session_info"]["expiry"] == 600
    assert str(tmp_path) not in str(made)
    assert door.get(session, params={"image": True}).content == content
    answer = door.post(INFER, params={"session_id": made["session_id"], "output": "json"})
    assert answer.status_code == 200
    assert door.delete(session).status_code == 200
    assert door.get(session).status_code == 404
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_of_an_image(
    door: TestClient, studies: Path, temporary: Path, pack: Callable[..., bytes]
) -> None:
    archive = pack({"folder/inner/case.nii.gz": (studies / "case.nii.gz").read_bytes()})
    made = create(door, ("a.zip", archive), uncompress=True).json()
    answer = door.post(INFER, params={"session_id": made["session_id"], "output": "json"})
    assert answer.status_code == 200
    assert list(temporary.iterdir()) == []


BAD = {
    "outside by ..": zipped({"../../out.nii": b"x"}),
    "outside by root": zipped({"/out.nii": b"x"}),
    "outside of a tar": tarred({"../../out.nii": b"x"}),
    "outside by a link": tarred({"link/out.nii": b"x"}, ("link", "/tmp")),
    "no archive": b"I am a text",
    "half": zipped({"a": bytes(range(256)) * 99})[:-40],
    "half a tar": tarred({"a": bytes(range(256)) * 99})[:-40],
    "nothing in it": zipped({}),
    "only a link": tarred({}, ("passwd", "/etc/passwd")),
    "two of one name": zipped({"a": b"x", "a/b": b"x"}),
    "damaged": zipped({"a": b"hello world " * 99}).replace(b"PK\x03", b"PK\x09"),
    "a wrong sum": zipped({"a": bytes(99)}).replace(
        zlib.crc32(bytes(99)).to_bytes(4, "little"), b"????"
    ),
}


@pytest.mark.parametrize("archive", BAD.values(), ids=BAD.keys())
def test_archives_of_no_use_leave_nothing(
    door: TestClient, tmp_path: Path, temporary: Path, archive: bytes
) -> None:
    before = set(tmp_path.rglob("*"))
    answer = create(door, ("a.zip", archive), uncompress=True)
    if answer.status_code == 200:  # the link was left out, the file is where it belongs
        assert archive == BAD["outside by a link"]
        return
    assert answer.status_code == 422
    assert "archive" in answer.json()["detail"]
    assert str(tmp_path) not in answer.text
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before
    assert list(temporary.iterdir()) == []
    assert not Path("/tmp/out.nii").exists()


def test_a_small_archive_of_a_large_file(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"a": bytes(1 << 22)}))
    assert archive.stat().st_size < 10_000
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="too large"):
        unpack(archive, tmp_path / "out", most_bytes=1 << 20)


def test_the_folder_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "1").touch()
    assert only_folder(tmp_path) == tmp_path / "a" / "b" / "1"
    (tmp_path / "a" / "b" / "2").touch()
    assert only_folder(tmp_path) == tmp_path / "a" / "b"


@pytest.mark.parametrize(
    "name", ["../../up.nii.gz", "..", ".hidden", "a\nb.nii.gz", "é" * 200, "/etc/x.nii.gz", "C:\\x"]
)
def test_a_file_s_name_is_no_path(
    door: TestClient, tmp_path: Path, temporary: Path, name: str
) -> None:
    answer = create(door, (name, b"content"))
    assert answer.status_code == 200
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "meta.info"]
    assert [p for p in kept if p.read_bytes() == b"content" and "sessions" not in p.parts] == []
    assert list(temporary.iterdir()) == []


def test_several_files_are_a_series(door: TestClient, temporary: Path) -> None:
    made = create(door, ("1.dcm", b"x"), ("2.dcm", b"y"), ("2.dcm", b"z")).json()
    answer = door.get(f"/session/{made['session_id']}", params={"image": True})
    assert answer.status_code == 422
    refused = create(door, ("1.zip", b"x"), ("2.zip", b"y"), uncompress=True)
    assert refused.status_code == 422
    assert list(temporary.iterdir()) == []


def test_an_empty_file_is_no_session(door: TestClient, temporary: Path) -> None:
    assert create(door, ("a.nii.gz", b"")).status_code == 422
    assert door.put("/session/").status_code == 422
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("session", ["%2e%2e", "%2e%2e%2fstudies", "x", "\u00e4"])
def test_a_session_is_no_path(door: TestClient, studies: Path, session: str) -> None:
    assert door.get(f"/session/{session}").status_code in (404, 405)
    assert door.delete(f"/session/{session}").status_code in (404, 405)
    assert (studies / "case.nii.gz").exists()
