"""Images and labels by id: what is kept, what is refused, what is written down."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from support.fake_server import AFFINE, SPOTS

from esp_medsam_app.server.annotated_cases import annotated_cases
from esp_medsam_app.server.app import EspMedSamApp

Audited = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def label(tmp_path: Path, organs: np.ndarray) -> bytes:
    path = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image((organs == 100).astype(np.uint8), AFFINE), path)
    return path.read_bytes()


def submit(client: TestClient, content: bytes, name: str = "label.nii.gz", **query: str) -> Any:
    params = {"label_info": [{"name": "liver", "idx": 1}], "model": "esp_medsam_ct_organs"}
    return client.put(
        "/datastore/label",
        params={"image": "case", **query},
        files={"label": (name, content)},
        data={"params": json.dumps(params)},
    )


def test_a_label_is_kept_and_written_down(
    door: TestClient, label: bytes, studies: Path, audited: Audited, temporary: Path
) -> None:
    assert submit(door, label).json() == {"image": "case", "label": "case"}
    assert (studies / "labels/final/case.nii.gz").read_bytes() == label
    assert door.get("/datastore/label?label=case&tag=final").content == label
    assert door.head("/datastore/label?image=case&tag=final").status_code == 200
    assert door.head("/datastore/label?label=case&tag=original").status_code == 404
    told = door.get("/datastore/label/info?label=case&tag=final").json()
    assert told["label_info"][0]["name"] == "liver"
    (line,) = audited()
    assert (line["action"], line["image"], line["tag"]) == ("label.save", "case", "final")
    assert line["submitted_sha256"] == hashlib.sha256(label).hexdigest()
    assert line["request"]
    assert list(temporary.iterdir()) == []


def test_every_change_is_written_down(
    door: TestClient, label: bytes, studies: Path, audited: Audited
) -> None:
    submit(door, label)
    door.put("/datastore/label/info?label=case&tag=final", data={"info": '{"a": 1}'})
    door.put("/datastore/updatelabelinfo?label=case&tag=final", data={"params": '{"b": 1}'})
    door.put("/datastore/image/info?image=case", data={"info": '{"c": 1}'})
    door.delete("/datastore/label?id=case&tag=final")
    picture = (studies / "photo.png").read_bytes()
    door.put("/datastore/image?image=new", files={"file": ("x.png", picture)})
    door.put("/datastore/", files={"file": ("old.png", picture)})
    door.delete("/datastore/image?id=new")
    door.delete("/datastore/?id=old")
    infer = "/infer/esp_medsam_ct_organs?image=case&output=json"
    door.post(infer, data={"params": '{"save_label": true, "label_tag": "first"}'})
    assert [line["action"] for line in audited()] == [
        "label.save", "label.describe", "label.describe", "image.describe", "label.remove",
        "image.add", "image.add", "image.remove", "image.remove", "label.predict",
    ]  # fmt: skip
    assert all(line["request"] and line["client"] for line in audited())
    # what was refused has changed nothing
    door.delete("/datastore/image?id=nobody")
    submit(door, b"no label map")
    assert len(audited()) == 10


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"", "a.nii.gz"), (b"text", "a.nii.gz"), (b"text", "a.exe"), (b"text", "noend"),
     (b"\x89PNG", "a.png"), (b"x", "a" * 300 + ".nii.gz"), (b"x", "a." + "b" * 300),
     (b"x", "../../a.nii.gz"), (b"x", "..\\..\\a.nii.gz")],
)  # fmt: skip
def test_what_is_no_label_map_replaces_nothing(
    door: TestClient, label: bytes, studies: Path, temporary: Path, content: bytes, name: str
) -> None:
    submit(door, label)
    assert submit(door, content, name).status_code == 422
    assert (studies / "labels/final/case.nii.gz").read_bytes() == label
    assert list(temporary.iterdir()) == []


UNREADABLE = [
    {"model": ["x"]}, {"model": {"a": 1}}, {"label_info": 3}, {"label_info": [{"name": 3}]},
    {"params": {"label_names": ["liver"]}}, {"params": {"label_names": {"liver": "x"}}},
    {"params": {"label_names": {"liver": [1]}}},
]  # fmt: skip


@pytest.mark.parametrize("told", UNREADABLE)
def test_what_nobody_could_read_again_is_not_noted(
    door: TestClient, label: bytes, told: dict[str, Any]
) -> None:
    submit(door, label)
    where = {"params": {"label": "case", "tag": "final"}}
    for answer in (
        door.put("/datastore/label/info", data={"info": json.dumps(told)}, **where),
        door.put("/datastore/updatelabelinfo", data={"params": json.dumps(told)}, **where),
        door.put(
            "/datastore/label",
            params={"image": "case"},
            files={"label": ("a.nii.gz", label)},
            data={"params": json.dumps(told)},
        ),
    ):
        assert answer.status_code == 422
        assert "params." in answer.json()["detail"]
    info = door.get("/datastore/label/info", **where).json()
    assert (info["label_info"][0]["name"], info["model"]) == ("liver", "esp_medsam_ct_organs")


@pytest.mark.parametrize("told", UNREADABLE)
def test_a_damaged_info_of_a_label_stops_nothing_else(
    door: TestClient, app: EspMedSamApp, label: bytes, told: dict[str, Any]
) -> None:
    """As an earlier release took it, or somebody wrote it into the file."""
    submit(door, label)
    app.datastore().update_label_info("case", "final", {"model": None, "label_info": [], **told})
    for strategy in ("random", "uncertainty", "diversity", "hybrid"):
        answer = door.post(f"/activelearning/{strategy}")
        assert answer.json()["id"] == "photo", answer.text
    assert door.get("/info/").status_code == 200
    assert annotated_cases(app.datastore(), SPOTS, list(app._infers)) == []


@pytest.mark.parametrize("tag", ["../../x", "..", "a/b", ".hidden", "a\\b", "\0"])
def test_a_tag_is_no_path(
    door: TestClient, label: bytes, studies: Path, tmp_path: Path, tag: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert submit(door, label, tag=tag).status_code == 422
    found = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path for path in found if not path.is_relative_to(studies)] == []
    assert door.delete("/datastore/label", params={"id": "case", "tag": tag}).status_code in (
        404, 422,
    )  # fmt: skip


@pytest.mark.parametrize("image", ["../../x", "..", "a/b", "/etc/x", ".hidden", "a\\b", "\0", "\n"])
def test_an_id_is_no_path(
    door: TestClient, studies: Path, tmp_path: Path, temporary: Path, image: str
) -> None:
    file = {"file": ("x.png", (studies / "photo.png").read_bytes())}
    before = sorted(tmp_path.rglob("*"))
    assert door.put("/datastore/image", params={"image": image}, files=file).status_code == 422
    assert [p for p in tmp_path.rglob("*") if p not in before and p.is_file()] == []
    assert door.get("/datastore/image", params={"image": image}).status_code in (404, 422)


def test_an_image_s_name_comes_from_its_file(door: TestClient, studies: Path) -> None:
    picture = (studies / "photo.png").read_bytes()
    for name, told in (
        ("C:\\scans\\v1.2.png", "v1.2"),
        ("../../out.png", "out"),
        ("scan.nii.gz", "scan"),
    ):
        added = door.put("/datastore/image", files={"file": (name, picture)})
        assert added.json() == {"image": told}


def test_another_image_of_the_same_id_is_refused(door: TestClient, studies: Path) -> None:
    before = (studies / "photo.png").read_bytes()
    other = before + b"x"
    answer = door.put("/datastore/image?image=photo", files={"file": ("a.png", other)})
    assert answer.status_code == 409
    assert "photo" in answer.json()["detail"]
    assert (studies / "photo.png").read_bytes() == before


def test_the_same_image_again_changes_nothing(door: TestClient, studies: Path) -> None:
    before = (studies / "photo.png").read_bytes()
    again = door.put("/datastore/image?image=photo", files={"file": ("a.png", before)})
    assert again.json() == {"image": "photo"}


@pytest.mark.parametrize("algorithm", ["SHA256", "SHA512", "MD5"])
def test_an_image_s_check_sum(either: TestClient, studies: Path, algorithm: str) -> None:
    content = (studies / "photo.png").read_bytes()
    digest = hashlib.new(algorithm.lower(), content).hexdigest()
    query = {"image": "photo", "check_sum": f"{algorithm}:{digest}"}
    assert either.head("/datastore/image", params=query).status_code == 200
    query["check_sum"] = f"{algorithm}:{digest[:-1]}x"
    assert either.head("/datastore/image", params=query).status_code == 404


def test_check_sums_of_other_kinds(door: TestClient, studies: Path) -> None:
    digest = hashlib.sha256((studies / "photo.png").read_bytes()).hexdigest()
    query = {"image": "photo", "check_sum": digest}
    assert door.head("/datastore/image", params=query).status_code == 200
    for odd in ("CRC:1", "x:y:z"):
        query["check_sum"] = odd
        assert door.head("/datastore/image", params=query).status_code == 422


def test_the_archive_is_gone_after_it_was_sent(
    either: TestClient, label: bytes, temporary: Path
) -> None:
    submit(either, label)
    answer = either.get("/datastore/dataset", params={"limit_cases": 5})
    names = zipfile.ZipFile(BytesIO(answer.content)).namelist()
    assert {"image/case.nii.gz", "label/case.nii.gz"} <= set(names)
    assert list(temporary.iterdir()) == []


def test_nothing_is_sent_into_a_pacs_by_the_wrong_way(
    door: TestClient, app: EspMedSamApp, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "studies", "http://pacs/dicom-web")
    file = {"file": ("x.png", (studies / "photo.png").read_bytes())}
    for answer in (
        door.put("/datastore/image?image=new", files=file),
        door.delete("/datastore/image?id=1.2.3"),
        door.get("/datastore/dataset"),
    ):
        assert answer.status_code == 405
        assert "PACS" in answer.json()["detail"]
