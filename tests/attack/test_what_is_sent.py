"""What is sent to a running server: headers that name other files, and files that hold it up."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.conversations import talk

from esp_medsam_app.server import reading
from esp_medsam_app.server.app import EspMedSamApp
from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.door.lanes import Lane
from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.readers import Readers

HEADERS = {
    ".nrrd": "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 6 5 4\nencoding: raw\ndata file: {}\n\n",
    ".mha": "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_UCHAR\n"
    "ElementDataFile = {}\n",
}
HEADERS |= {".nhdr": HEADERS[".nrrd"], ".seg.nrrd": HEADERS[".nrrd"], ".mhd": HEADERS[".mha"]}
Send = Callable[[TestClient, str, bytes], Any]


def as_label(door: TestClient, name: str, content: bytes) -> Any:
    names = [{"name": "liver", "idx": value} for value in range(1, 256)]
    return door.put(
        "/datastore/label?image=case",
        files={"label": (name, content)},
        data={"params": json.dumps({"label_info": names})},
    )


def as_image(door: TestClient, name: str, content: bytes) -> Any:
    return door.put("/datastore/image", files={"file": (name, content)})


def as_session(door: TestClient, name: str, content: bytes) -> Any:
    return door.put("/session/", files={"files": (name, content)})


def in_archive(door: TestClient, name: str, content: bytes) -> Any:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"below/{name}", content)
        archive.writestr("below/v.raw", bytes(120))
    archive_ = ("a.zip", packed.getvalue())
    return door.put("/session/?uncompress=true", files={"files": archive_})


def to_segment(door: TestClient, name: str, content: bytes) -> Any:
    return door.post("/infer/esp_medsam_ct_organs", files={"file": (name, content)})


WAYS: dict[str, Send] = {
    "label": as_label,
    "image": as_image,
    "session": as_session,
    "archive": in_archive,
    "inference": to_segment,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", HEADERS)
def test_no_file_that_is_sent_names_another(
    door: TestClient, way: str, suffix: str, tmp_path: Path, studies: Path, temporary: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes([1]) * 120)
    before = sorted(studies.rglob("*"))
    for target in (str(secret), "v.raw"):
        answer = WAYS[way](door, f"a{suffix}", HEADERS[suffix].format(target).encode())
        assert answer.status_code == 422, answer.text
        assert "another file" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
    assert sorted(path for path in studies.rglob("*") if path.suffix != ".lock") == before
    assert list(temporary.iterdir()) == []


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Readers]:
    """Readers that take a file and never answer."""
    program = f"import pickle, sys, time; sys.path[:] = {sys.path!r}; "
    program += "pickle.load(sys.stdin.buffer); time.sleep(600)"
    readers = Readers([sys.executable, "-c", program], most=2, wait=0.2)
    monkeypatch.setattr(reading, "readers", lambda: readers)
    monkeypatch.setattr(reading, "_SECONDS", 0.5)
    yield readers
    readers.close()


def test_files_that_never_end_give_their_places_back(
    make_door: Callable[..., FrontDoor], frozen: Readers
) -> None:
    """As many as there are places, and more: each is answered, and the server goes on."""
    door = make_door(work_slots=3, work_queue=50)
    content = HEADERS[".nrrd"].replace("data file: {}\n", "").encode() + bytes(120)

    async def conversation(client: httpx.AsyncClient) -> None:
        sent = [
            client.put("/datastore/label?image=case", files={"label": ("a.nrrd", content)})
            for _ in range(8)
        ]
        answers = await asyncio.gather(*sent, client.get("/info/"))
        assert answers[-1].status_code == 200
        told = {answer.status_code: answer for answer in answers[:-1]}
        assert set(told) <= {422, 503}
        assert "retry-after" in told[503].headers
        assert (await client.get("/info/")).status_code == 200
        assert door.work.running == 0

    talk(door, conversation)
    assert not frozen._busy


def test_the_server_is_not_ready_while_nothing_moves(
    make_door: Callable[..., FrontDoor], app: EspMedSamApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(app.app_dir).mkdir()
    door = make_door(work_slots=1)
    door._health.is_ready = True
    held = threading.Event()
    monkeypatch.setattr(
        "esp_medsam_app.server.door.datastore_routes.the_app", lambda: held.wait(20) or 1 / 0
    )
    door.work.patience = 0.1

    async def conversation(client: httpx.AsyncClient) -> None:
        assert (await client.get("/readyz")).status_code == 200
        stuck = asyncio.create_task(client.get("/datastore/image/info?image=case"))
        while (ready := await client.get("/readyz")).status_code == 200:
            await asyncio.sleep(0.01)
        assert ready.status_code == 503
        assert "nothing moves" in ready.json()["detail"]
        held.set()
        await stuck
        assert (await client.get("/readyz")).status_code == 200

    talk(door, conversation)


def test_places_that_are_given_back_are_not_stuck() -> None:
    async def run() -> None:
        left = asyncio.get_running_loop().create_future()
        lane = Lane("work", 1, 0, patience=0.05)
        assert not lane.is_stuck
        await lane.enter(left)
        assert not lane.is_stuck
        await asyncio.sleep(0.06)
        assert lane.is_stuck
        with pytest.raises(RefusedError):
            await lane.enter(left)
        lane.leave(0.06)
        assert not lane.is_stuck
        await lane.enter(left)
        assert not lane.is_stuck

    asyncio.run(run())


def test_an_image_that_is_larger_than_its_file_can_be(door: TestClient, tmp_path: Path) -> None:
    """A label map is compared with its image before it is unpacked; an image with its own size."""
    from support.bombs import nifti

    nifti(tmp_path / "a.nii.gz")
    content = (tmp_path / "a.nii.gz").read_bytes()
    answer = as_label(door, "a.nii.gz", content)
    assert answer.status_code == 422
    assert "its image has 6 x 5 x 4" in answer.json()["detail"]
    answer = to_segment(door, "a.nii.gz", content)
    assert answer.status_code == 422
    assert "of memory" in answer.json()["detail"]


def test_a_label_of_wide_numbers_is_kept(door: TestClient, studies: Path, tmp_path: Path) -> None:
    import nibabel as nib
    from support.fake_server import AFFINE

    voxels = np.zeros((6, 5, 4))
    voxels[1, 1, 1] = 1
    nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii.gz")
    answer = as_label(door, "a.nii.gz", (tmp_path / "a.nii.gz").read_bytes())
    assert answer.status_code == 200, answer.text
    kept = nib.load(studies / "labels" / "final" / "case.nii.gz")
    assert np.array_equal(kept.get_fdata(), voxels)
