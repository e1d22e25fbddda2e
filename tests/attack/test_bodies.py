"""Who may send how much is decided before a body is read, and no upload fills a disk."""

from __future__ import annotations

import asyncio
import errno
import io
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from monailabel.config import settings as monai_settings
from monailabel.endpoints.user import auth
from support.full_disks import MB, small_disks
from support.keycloak import Keycloak

from esp_medsam_app.errors import FullDiskError
from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.disks import SESSIONS, STUDIES, TEMPORARY, Disks, written_folders
from esp_medsam_app.server.door import bodies
from esp_medsam_app.server.door.bodies import Body, chunks
from esp_medsam_app.server.door.refusal import RefusedError

TOKEN, ADMIN = "a token of the annotators", "another token of the admins"
MULTIPART = "multipart/form-data; boundary=x"
UPLOADS = [
    ("PUT", "/datastore/"), ("PUT", "/datastore/image"), ("PUT", "/datastore/label"),
    ("PUT", "/session/"), ("POST", "/infer/esp_medsam_spots"), ("PUT", "/model/esp_medsam_spots"),
    ("POST", "/proxy/dicom/studies"), ("PUT", "/nowhere"), ("POST", "//datastore/image"),
]  # fmt: skip


def flood(
    door: FrontDoor,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    kind: str = MULTIPART,
    most: int = 64,
) -> tuple[int, int]:
    """Send a body without an announced end, 1 MB at a time: the answer, and how much was read."""
    read, answers = 0, []

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": bytes(MB), "more_body": read < most}

    async def send(message: Any) -> None:
        answers.append(message)

    told = {"host": "server", "content-type": kind, **(headers or {})}
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(k.encode(), v.encode()) for k, v in told.items()],
        "client": ("192.0.2.7", 4711), "server": ("server", 80),
    }  # fmt: skip
    asyncio.run(door(scope, receive, send))
    return answers[0]["status"], read


@pytest.fixture
def keycloak(monkeypatch: pytest.MonkeyPatch) -> Keycloak:
    found = Keycloak()
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "get_public_key", lambda realm: found.public)
    return found


# --- who ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), UPLOADS)
def test_of_whom_nobody_knows_nothing_is_read(
    make_door: Callable[..., FrontDoor], keycloak: Keycloak, method: str, path: str
) -> None:
    door = make_door()
    stranger = Keycloak().log_in("monailabel-user", "monailabel-admin")
    for headers in ({}, {"authorization": "Bearer x"}, stranger):
        assert flood(door, method, path, headers) == (401, 0)


@pytest.mark.parametrize(("method", "path"), UPLOADS)
def test_without_the_token_nothing_is_read(
    make_door: Callable[..., FrontDoor], method: str, path: str
) -> None:
    assert flood(make_door(token=TOKEN), method, path) == (401, 0)


def test_of_the_wrong_role_nothing_is_read(
    make_door: Callable[..., FrontDoor], keycloak: Keycloak
) -> None:
    door = make_door()
    user = keycloak.log_in("monailabel-user")
    annotator = keycloak.log_in("monailabel-user", "monailabel-annotator")
    for path in ("/datastore/", "/datastore/image", "/datastore/label"):
        assert flood(door, "PUT", path, user) == (403, 0)
    assert flood(door, "POST", "/proxy/dicom/studies", user) == (403, 0)
    for headers in (user, annotator):
        assert flood(door, "PUT", "/model/esp_medsam_spots", headers) == (403, 0)


@pytest.mark.parametrize("kind", [MULTIPART, "application/octet-stream", "application/json", ""])
@pytest.mark.parametrize("path", ["/auth/token", "/auth/token/", "/auth/", "//auth/token"])
def test_a_log_in_is_small(make_door: Callable[..., FrontDoor], path: str, kind: str) -> None:
    status, read = flood(make_door(token=TOKEN), "POST", path, kind=kind)
    assert status == 413
    assert read <= 1


def test_keycloak_s_log_in_is_small(
    make_door: Callable[..., FrontDoor], keycloak: Keycloak
) -> None:
    assert flood(make_door(), "POST", "/auth/token") == (413, 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/datastore/image/info"), ("PUT", "/datastore/label/info"), ("POST", "/train/x"),
     ("POST", "/batch/infer/x"), ("POST", "/activelearning/random"), ("POST", "/scoring/dice"),
     ("PUT", "/datastore/updatelabelinfo"), ("DELETE", "/train/"),
     ("POST", "/versions/x/restore"), ("PUT", "/nowhere"), ("POST", "/datastore/image")],
)  # fmt: skip
def test_only_uploads_are_large(
    make_door: Callable[..., FrontDoor], method: str, path: str
) -> None:
    """Whatever they say they are."""
    status, read = flood(make_door(), method, path)
    assert status == 413
    assert read <= 2


# --- how much -------------------------------------------------------------------------------------


@pytest.fixture
def roomy(
    make_door: Callable[..., FrontDoor],
    studies: Path,
    temporary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[TestClient, Callable[[Path], float]]]:
    """A front door, and disks of its folders with this many MB."""
    (tmp_path / "sessions").mkdir(exist_ok=True)
    # only in this process are the disks small
    monkeypatch.setattr("esp_medsam_app.server.reading._apart", lambda: False)
    folders = {"temporary": temporary, "studies": studies, "sessions": tmp_path / "sessions"}

    def make(**sizes: float) -> tuple[TestClient, Callable[[Path], float]]:
        door = TestClient(make_door(min_free_mb=1), raise_server_exceptions=False)
        sized = {folders[name]: size for name, size in sizes.items()}
        return door, small_disks(monkeypatch, sized)

    return make


def image(mb: float) -> dict[str, tuple[str, bytes]]:
    return {"file": ("a.png", bytes(int(mb * MB)))}


def test_an_upload_without_an_announced_size_fills_no_disk(
    roomy: Callable[..., Any], temporary: Path
) -> None:
    door, written = roomy(temporary=12)
    status, read = flood(door.app, "PUT", "/datastore/image")
    assert status == 507
    # three copies of what was sent have to have room
    assert read <= 6
    assert written(temporary) == 0


@pytest.mark.parametrize(("disk", "method", "path", "field"), [
    ("studies", "PUT", "/datastore/image", "file"),
    ("studies", "PUT", "/datastore/label?image=photo", "label"),
    ("sessions", "PUT", "/session/", "files"),
    ("temporary", "POST", "/infer/esp_medsam_spots", "file"),
])  # fmt: skip
def test_the_disk_that_is_written_has_to_have_room(
    roomy: Callable[..., Any], temporary: Path, disk: str, method: str, path: str, field: str
) -> None:
    door, written = roomy(**{disk: 3})
    answer = door.request(method, path, files={field: ("a.png", bytes(5 * MB // 2))})
    assert answer.status_code == 507, answer.text
    assert f"disk of the {disk}" in answer.json()["detail"]
    assert "Tell" in answer.json()["detail"]
    assert written(temporary) == 0


def test_small_uploads_do_not_fill_it_either(roomy: Callable[..., Any], studies: Path) -> None:
    door, _ = roomy(studies=1.3)
    content = (studies / "photo.png").read_bytes() + bytes(MB // 5)
    statuses = [
        door.put("/datastore/image", files={"file": (f"{n}.png", content)}).status_code
        for n in range(4)
    ]
    assert statuses == [200, 507, 507, 507]


def test_uploads_at_the_same_time_do_not_find_the_same_room(tmp_path: Path) -> None:
    folders = {TEMPORARY: tmp_path, STUDIES: tmp_path}
    free = shutil.disk_usage(tmp_path).free / MB
    disks = Disks(free - 100, lambda: folders)
    with disks.room() as first, disks.room() as second:
        first.promise(TEMPORARY, 60 * MB)
        with pytest.raises(FullDiskError, match="disk of the studies"):
            second.promise(STUDIES, 60 * MB)
        second.promise(STUDIES, 20 * MB)
        first.written(TEMPORARY, 50 * MB)
        second.promise(STUDIES, 40 * MB)
    with disks.room() as third:
        third.promise(TEMPORARY, 80 * MB)
    assert sum(disks._promised.values()) == 0


def test_promises_of_threads_add_up(tmp_path: Path) -> None:
    disks = Disks(0, lambda: {TEMPORARY: tmp_path})

    def upload() -> None:
        for _ in range(50):
            with disks.room() as room:
                room.promise(TEMPORARY, 7)
                room.written(TEMPORARY, 3)

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(disks._promised.values()) == 0


@pytest.mark.parametrize("disk", ["temporary", "sessions"])
def test_an_archive_is_unpacked_as_far_as_there_is_room(
    roomy: Callable[..., Any], temporary: Path, tmp_path: Path, disk: str
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            archive.writestr(f"{number}.dcm", bytes(MB))
    door, written = roomy(**{disk: 5})
    files = {"files": ("a.zip", packed.getvalue())}
    answer = door.put("/session/", params={"uncompress": True}, files=files)
    assert answer.status_code == 507, answer.text
    assert f"disk of the {disk}" in answer.json()["detail"]
    assert written(temporary) == 0
    assert written(tmp_path / "sessions") == 0


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", [
    # the body, the parts of it that FastAPI makes, and the file to work on
    "esp_medsam_app.server.door.bodies.Body.add",
    "starlette.datastructures.UploadFile.write",
    "esp_medsam_app.server.door.uploads.shutil.copyfileobj",
    "esp_medsam_app.server.file_changes.shutil.copyfile",
])  # fmt: skip
def test_a_disk_that_fills_up_all_the_same_is_told(
    door: TestClient, studies: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    content = (studies / "photo.png").read_bytes()
    before = (studies / "datastore_v2.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        # above what stays in memory
        answer = door.put("/datastore/image", files={"file": ("b.png", content + bytes(2 * MB))})
    assert answer.status_code == 507, answer.text
    assert "too little room" in answer.json()["detail"]
    assert list(temporary.iterdir()) == []
    assert (studies / "datastore_v2.json").read_bytes() == before
    assert not (studies / "b.png").exists()


def test_a_label_for_which_the_studies_have_no_room(
    door: TestClient, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = {"label": ("a.png", (studies / "photo.png").read_bytes())}
    names = {"params": '{"label_info": [{"name": "spot", "idx": 100}, {"name": "x", "idx": 7}]}'}
    with monkeypatch.context() as patched:
        patched.setattr("esp_medsam_app.server.file_changes.shutil.copyfile", full)
        answer = door.put("/datastore/label?image=photo", files=label, data=names)
    assert answer.status_code == 507
    assert "disk of the studies" in answer.json()["detail"]
    assert door.put("/datastore/label?image=photo", files=label, data=names).status_code == 200


def test_all_that_is_written_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", "http://pacs/dicom-web")
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", "/data/dicom")
    monkeypatch.setattr(monai_settings, "MONAI_LABEL_SESSION_PATH", "/data/sessions")
    folders = written_folders()
    assert folders[STUDIES] == Path("/data/dicom")
    assert folders[SESSIONS] == Path("/data/sessions")
    assert folders[TEMPORARY] == Path(tempfile.gettempdir())


# --- how slowly -----------------------------------------------------------------------------------


def test_a_client_that_sends_a_letter_at_a_time_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is never silent for long."""
    monkeypatch.setattr(bodies, "_SLOWEST", 1 << 30)

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        async for _ in chunks(receive, MB, 0.1):
            pass

    with pytest.raises(RefusedError, match="too slow") as caught:
        asyncio.run(asyncio.wait_for(read(), 5))
    assert caught.value.status == 408


def test_a_body_in_memory_takes_no_room_on_the_disk(temporary: Path) -> None:
    body = Body()
    body.add(bytes(MB))
    assert body.size_on_disk == 0
    body.add(b"x")
    assert body.size_on_disk == MB + 1
    body.close()
