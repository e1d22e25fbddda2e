"""The datastore loses no label; tests with `store_class` show that MONAI Label's own does."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from PIL import Image
from support.fake_server import detail

from esp_medsam_app.server.datastore_file import DatastoreFile
from esp_medsam_app.server.local_datastore import SafeDatastore

PATTERNS = ["*.nii.gz", "*.nrrd", "*.png"]

store_class = pytest.mark.parametrize(
    "store_class",
    [
        SafeDatastore,
        pytest.param(
            LocalDatastore,
            marks=pytest.mark.xfail(strict=True, raises=Exception, reason="MONAI Label 0.8.5"),
        ),
    ],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images `a` and `b`."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b"):
        picture(folder / f"{name}.png", 9)
    return folder


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)
    return path


def value_of(path: str | Path) -> int:
    return int(np.asarray(Image.open(path)).max())


def open_store(kind: type, folder: Path, **options: Any) -> Any:
    return kind(str(folder), extensions=PATTERNS, **options)


def final_value(store: Any, image: str) -> int:
    return value_of(store.get_label_uri(image, "final"))


# --- nothing is lost when several write ----------------------------------------------------------


@store_class
def test_another_process_s_label_is_not_overwritten(
    store_class: type, folder: Path, tmp_path: Path
) -> None:
    server = open_store(store_class, folder)
    scoring = open_store(store_class, folder)
    label = picture(tmp_path / "label.png", 1)
    server.save_label("a", str(label), "final", {"label_info": [{"name": "liver"}]})
    scoring.update_image_info("b", {"dice": 0.5})  # it had read the file before
    again = open_store(store_class, folder)
    assert again.get_label_info("a", "final")["label_info"] == [{"name": "liver"}]
    assert again.get_image_info("b")["dice"] == 0.5


@store_class
def test_what_another_process_wrote_is_seen_without_a_restart(
    store_class: type, folder: Path, tmp_path: Path
) -> None:
    server = open_store(store_class, folder)
    other = open_store(store_class, folder)
    other.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", {})
    other.update_image_info("b", {"dice": 0.5})
    assert server.get_labeled_images() == ["a"]
    assert server.get_image_info("b")["dice"] == 0.5


def test_a_change_of_equal_size_within_the_clock_s_tick_is_seen(folder: Path) -> None:
    server, other = open_store(SafeDatastore, folder), open_store(SafeDatastore, folder)
    file = folder / "datastore_v2.json"
    other.update_image_info("a", {"score": 1})
    assert server.get_image_info("a").get("score") == 1
    before = file.stat()
    other.update_image_info("a", {"score": 2})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert server.get_image_info("a")["score"] == 2


def score_all(folder: Path, rounds: int) -> None:
    store = open_store(SafeDatastore, folder)
    for number in range(rounds):
        for image in ("a", "b"):
            store.update_image_info(image, {f"score_{number}": number})


def test_processes_and_threads_at_once_lose_nothing(folder: Path, tmp_path: Path) -> None:
    server = open_store(SafeDatastore, folder)
    fork = multiprocessing.get_context("fork")
    scorings = [fork.Process(target=score_all, args=(folder, 15)) for _ in range(2)]
    for process in scorings:
        process.start()

    def submit(number: int) -> None:
        label = picture(tmp_path / f"{number}.png", number)
        server.save_label(
            "a", str(label), f"tag_{number}", {"label_info": [{"name": f"n{number}"}]}
        )
        server.update_label_info("a", f"tag_{number}", {"checked": True})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(1, 21)))
    for process in scorings:
        process.join()
        assert process.exitcode == 0
    for store in (server, open_store(SafeDatastore, folder)):
        for number in range(1, 21):
            info = store.get_label_info("a", f"tag_{number}")
            assert info["label_info"] == [{"name": f"n{number}"}]
            assert info["checked"] is True
            assert value_of(store.get_label_uri("a", f"tag_{number}")) == number
        for image in ("a", "b"):
            info = store.get_image_info(image)
            assert [info[f"score_{number}"] for number in range(15)] == list(range(15))


def test_a_reader_never_sees_half_a_label(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    labels = [picture(tmp_path / f"{value}.png", value) for value in (1, 2)]
    store.save_label("a", str(labels[0]), "final", {})
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            seen.append(final_value(store, "a"))

    reader = ThreadPoolExecutor(1).submit(read)
    for number in range(20):
        store.save_label("a", str(labels[number % 2]), "final", {})
    done.set()
    reader.result()  # raises what the reader met
    assert set(seen) <= {1, 2}


def test_a_transaction_within_another_is_a_part_of_it(folder: Path) -> None:
    store = open_store(SafeDatastore, folder)
    with store._file.transaction() as change:
        change.model.objects["a"].image.info["outer"] = 1
        store.update_image_info("a", {"inner": 2})
        assert "inner" not in store.get_image_info("a")
    info = open_store(SafeDatastore, folder).get_image_info("a")
    assert (info["outer"], info["inner"]) == (1, 2)


@pytest.mark.parametrize("broken", ["label", "datastore"])
def test_a_full_disk_leaves_everything_as_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store = open_store(SafeDatastore, folder)
    store.save_label("a", str(picture(tmp_path / "1.png", 1)), "final", {"who": "first"})
    before = (folder / "datastore_v2.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    target = "shutil.copyfile" if broken == "label" else "pathlib.Path.write_bytes"
    monkeypatch.setattr(target, full)
    with pytest.raises(HTTPException, match="too little room") as caught:
        store.save_label("a", str(picture(tmp_path / "2.png", 2)), "final", {"who": "second"})
    assert caught.value.status_code == 507
    assert (folder / "datastore_v2.json").read_bytes() == before
    assert final_value(store, "a") == 1
    assert store.get_label_info("a", "final")["who"] == "first"
    assert [p.name for p in folder.rglob(".*.*")] == []


# --- damage --------------------------------------------------------------------------------------


@store_class
@pytest.mark.parametrize("content", [b'{"name": ', b"", b"{}", b"\xff\xfe", None])
def test_a_damaged_file_is_restored(
    store_class: type,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    store = open_store(store_class, folder)
    info = {"label_info": [{"name": "liver"}]}
    store.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", info)
    file = folder / "datastore_v2.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    caplog.clear()
    again = open_store(store_class, folder)
    assert again.get_label_info("a", "final")["label_info"] == [{"name": "liver"}]
    assert json.loads(file.read_bytes())["objects"]["a"]["labels"]["final"]
    (warning,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert f"Restored 2 images with 1 labels from {file}.last_good" in warning
    kept = list(folder.glob("datastore_v2.json.damaged-*"))
    assert [path.read_bytes() for path in kept] == ([] if content is None else [content])
    assert all(path.name in warning for path in kept)


def test_damage_while_the_server_runs(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    store.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", {"who": "me"})
    file = folder / "datastore_v2.json"
    for _ in range(2):  # within one second: neither damaged file replaces the other
        file.write_bytes(file.read_bytes()[:50])
        assert store.get_label_info("a", "final")["who"] == "me"
    assert len(list(folder.glob("datastore_v2.json.damaged-*"))) == 2
    file.write_bytes(b"")
    (folder / "datastore_v2.json.last_good").write_bytes(b"")
    store.update_image_info("b", {"dice": 1.0})  # from memory
    assert open_store(SafeDatastore, folder).get_label_info("a", "final")["who"] == "me"


def test_damage_without_a_good_copy(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    store.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", {})
    (folder / "datastore_v2.json").write_bytes(b"{")
    (folder / "datastore_v2.json.last_good").unlink()
    again = open_store(SafeDatastore, folder)
    assert again.list_images() == ["a", "b"]
    assert final_value(again, "a") == 1


def test_a_label_younger_than_the_good_copy_is_found(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    old = (folder / "datastore_v2.json.last_good").read_bytes()
    store.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", {})
    (folder / "datastore_v2.json.last_good").write_bytes(old)
    (folder / "datastore_v2.json").write_bytes(b"{")
    assert open_store(SafeDatastore, folder).get_labeled_images() == ["a"]


def test_a_damaged_file_is_left_alone_if_nothing_may_be_written(folder: Path) -> None:
    open_store(SafeDatastore, folder)
    file = folder / "datastore_v2.json"
    file.write_bytes(b"{")
    store = open_store(SafeDatastore, folder, read_only=True)
    assert store.list_images() == ["a", "b"]
    assert file.read_bytes() == b"{"
    assert list(folder.glob("*.damaged-*")) == []


# --- images and labels that come again -----------------------------------------------------------


@store_class
@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_an_image_that_comes_again_keeps_its_labels(
    store_class: type, folder: Path, tmp_path: Path, suffix: str
) -> None:
    store = open_store(store_class, folder)
    store.update_image_info("a", {"patient": "p1"})
    store.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", {"who": "me"})
    content = (folder / "a.png").read_bytes()
    new = tmp_path / f"tmp{suffix}"
    new.write_bytes(content)
    store.add_image("a", str(new), {"site": "north"})
    for each in (store, open_store(store_class, folder)):
        assert each.get_label_info("a", "final")["who"] == "me"
        info = each.get_image_info("a")
        assert (info["site"], info["patient"], info["name"]) == ("north", "p1", f"a{suffix}")
        assert Path(each.get_image_uri("a")).read_bytes() == content
        assert [p.name for p in folder.glob("a.*")] == [f"a{suffix}"]


@store_class
@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_another_image_of_the_same_id_is_refused(
    store_class: type, folder: Path, tmp_path: Path, suffix: str
) -> None:
    """The labels there are would lie on it."""
    store = open_store(store_class, folder)
    store.save_label("a", str(picture(tmp_path / "label.png", 1)), "final", {"who": "me"})
    before = (folder / "a.png").read_bytes()
    new = tmp_path / f"tmp{suffix}"
    new.write_bytes(b"new content")
    answer = HTTPException(200)
    try:
        store.add_image("a", str(new), {"site": "north"})
    except HTTPException as error:
        answer = error
    assert answer.status_code == 409
    assert "another image 'a' already" in answer.detail
    assert [p.name for p in folder.glob("a.*")] == ["a.png"]
    assert (folder / "a.png").read_bytes() == before
    assert "site" not in store.get_image_info("a")
    assert store.get_label_info("a", "final")["who"] == "me"


@store_class
def test_a_label_that_comes_again_keeps_the_one_before(
    store_class: type, folder: Path, tmp_path: Path
) -> None:
    store = open_store(store_class, folder)
    for value in (1, 2, 3):
        label = picture(tmp_path / f"{value}.png", value)
        store.save_label("a", str(label), DefaultLabelTag.FINAL, {"who": value})
    assert final_value(store, "a") == 3
    history = [
        p for p in folder.rglob("*.png") if p.parent not in (folder, folder / "labels/final")
    ]
    assert sorted(map(value_of, history)) == [1, 2]


def test_versions(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    for value in range(1, 13):
        store.save_label("a", str(picture(tmp_path / "l.png", value)), "final", {"who": value})
    store.save_label("a", str(tmp_path / "l.png"), "final", {"who": 13})  # the same once more
    volume = tmp_path / "l.nii.gz"
    volume.write_bytes(b"another format")
    store.save_label("a", str(volume), "final", {"label_info": [{"name": "liver"}]})
    versions = store.label_versions("a", DefaultLabelTag.FINAL)
    assert [value_of(path) for path in versions] == list(range(1, 13))
    infos = [json.loads(path.with_suffix(".json").read_text()) for path in versions]
    assert [info["who"] for info in infos] == [*range(1, 12), 13]
    assert sorted(p.name for p in (folder / "labels" / "final").iterdir()) == ["a.nii.gz"]
    # MONAI Label knows nothing of them
    assert open_store(SafeDatastore, folder).status()["label_tags"] == {"final": 1}
    assert open_store(LocalDatastore, folder).status()["label_tags"] == {"final": 1}


def test_predictions_leave_no_versions_but_annotations_do(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    files = [str(picture(tmp_path / f"{value}.png", value)) for value in (1, 2, 3)]
    store.save_prediction("a", files[0], "original", {"model": "m"})
    store.save_prediction("a", files[1], "original", {"model": "m"})
    assert store.label_versions("a", "original") == []
    store.save_label("a", files[2], "original", {"predicted": True})  # so it says
    store.save_prediction("a", files[0], "original", {"model": "m"})
    assert [value_of(path) for path in store.label_versions("a", "original")] == [3]


def test_what_only_the_server_notes_is_not_taken_from_clients(folder: Path, tmp_path: Path) -> None:
    """A label that was said to be predicted would give way without a version."""
    store = open_store(SafeDatastore, folder)
    files = [str(picture(tmp_path / f"{value}.png", value)) for value in (1, 2)]
    store.save_label("a", files[0], "final", {})
    store.update_label_info("a", "final", {"predicted": True, "seen": True})
    assert store.get_label_info("a", "final")["seen"] is True
    store.save_label("a", files[1], "final", {})
    assert [value_of(path) for path in store.label_versions("a", "final")] == [1]


def test_removing(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    other = open_store(SafeDatastore, folder)
    label = str(picture(tmp_path / "l.png", 1))
    for tag in ("final", "original", "version_1"):
        store.save_label("a", label, tag, {"who": "me"})
    other.remove_label("a", "final")
    assert sorted(store.get_labels_by_image_id("a")) == ["original", "version_1"]
    assert not (folder / "labels" / "final" / "a.png").exists()
    (version,) = store.label_versions("a", "final")
    assert json.loads(version.with_suffix(".json").read_text())["who"] == "me"
    other.remove_image("a")
    assert store.list_images() == ["b"]
    assert not [p for p in folder.rglob("*") if p.name.startswith("a") or "final/a" in str(p)]
    assert open_store(SafeDatastore, folder).list_images() == ["b"]


# --- names ---------------------------------------------------------------------------------------


@store_class
def test_ids_end_where_the_suffix_begins(store_class: type, folder: Path, tmp_path: Path) -> None:
    picture(folder / "scan.png.v2.png", 5)
    store = open_store(store_class, folder)
    assert "scan.png.v2" in store.list_images()
    assert value_of(store.get_image_uri("scan.png.v2")) == 5
    store.save_label("scan.png.v2", str(picture(tmp_path / "x.png.y.png", 1)), "final", {})
    assert (folder / "labels" / "final" / "scan.png.v2.png").is_file()
    again = open_store(store_class, folder)
    assert again.get_labeled_images() == ["scan.png.v2"]


BAD_IDS = ["../x", "/tmp/x", "a/b", "a\\b", "..", ".", ".lock", "a\0b", "a\nb", "x" * 300]


@store_class
def test_nothing_is_written_outside_the_folder(
    store_class: type, folder: Path, tmp_path: Path
) -> None:
    store = open_store(store_class, folder)
    label = str(picture(tmp_path / "l.png", 1))
    before = sorted(tmp_path.iterdir())
    with contextlib.suppress(HTTPException):
        store.add_image("../x", label, {})
    with contextlib.suppress(HTTPException):
        store.save_label("a", label, "../../up", {})
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("image_id", BAD_IDS)
def test_ids_that_are_no_names_are_refused(folder: Path, tmp_path: Path, image_id: str) -> None:
    store = open_store(SafeDatastore, folder)
    everything = sorted(tmp_path.rglob("*"))
    with pytest.raises(HTTPException, match="cannot be an image's id") as caught:
        store.add_image(image_id, str(folder / "a.png"), {})
    assert caught.value.status_code == 422
    assert sorted(tmp_path.rglob("*")) == everything


@pytest.mark.parametrize("tag", ["../up", "/tmp", "a/b", "", ".hidden", "a\\b", ".."])
def test_tags_that_are_no_names_are_refused(folder: Path, tmp_path: Path, tag: str) -> None:
    store = open_store(SafeDatastore, folder)
    label = str(picture(tmp_path / "l.png", 1))
    everything = sorted(tmp_path.rglob("*"))
    with pytest.raises(HTTPException, match="tag") as caught:
        store.save_label("a", label, tag, {})
    assert caught.value.status_code == 422
    assert sorted(tmp_path.rglob("*")) == everything


def test_files_that_are_no_images_are_refused(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    for name in ("datastore_v2.json", "labels", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(HTTPException, match="does not end as an image's"):
            store.add_image("datastore_v2", str(tmp_path / name), {})
    dicom = tmp_path / "IM0001"
    dicom.write_bytes(bytes(128) + b"DICM")
    assert store.add_image("", str(dicom), {}) == "IM0001"
    assert (folder / "IM0001.dcm").is_file()


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.save_label("no", "x.png", "final", {}),
        lambda s: s.remove_image("no"),
        lambda s: s.remove_label("a", "final"),
        lambda s: s.remove_label("no", "final"),
        lambda s: s.update_image_info("no", {}),
        lambda s: s.update_label_info("a", "final", {}),
    ],
)
def test_unknown_names_are_told(folder: Path, call: Callable[[SafeDatastore], None]) -> None:
    with pytest.raises(HTTPException) as caught:
        call(open_store(SafeDatastore, folder))
    assert caught.value.status_code == 404


def test_infos_are_always_json(folder: Path) -> None:
    store = open_store(SafeDatastore, folder)
    store.update_image_info("a", {"dice": np.float32(0.5), "n": np.int64(3), "bad": float("nan")})
    info = open_store(SafeDatastore, folder).get_image_info("a")
    assert (info["dice"], info["n"], info["bad"]) == (0.5, 3, None)
    with pytest.raises(HTTPException, match="mapping"):
        store.update_image_info("a", [1])


# --- what comes by other ways --------------------------------------------------------------------


def test_files_that_come_and_go(folder: Path, tmp_path: Path) -> None:
    store = open_store(SafeDatastore, folder)
    picture(folder / "c.png", 1)
    picture(folder / ".0123.d.png", 1)
    picture(folder / "labels" / "final" / "a.png", 1)
    picture(folder / "labels" / "final" / "nobody.png", 1)
    (folder / "b.png").unlink()
    store.refresh()
    assert store.list_images() == ["a", "c"]
    assert store.get_labeled_images() == ["a"]


def test_two_files_of_one_name_are_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An id is a name without its suffix: one of them cannot be an image."""
    picture(folder / "a.PNG", 5)
    store = SafeDatastore(str(folder), extensions=[*PATTERNS, "*.PNG"])
    (folder / "b.nrrd").write_bytes(b"x")
    store.refresh()
    store.refresh()
    assert store.list_images() == ["a", "b"]
    told = [line for line in caplog.messages if "not offered" in line]
    assert told == [
        "a.png is not offered: image 'a' is a.PNG. Rename one of them",
        "b.nrrd is not offered: image 'b' is b.png. Rename one of them",
    ]


@store_class
def test_an_image_that_is_gone_for_a_moment(
    store_class: type, folder: Path, tmp_path: Path
) -> None:
    store = open_store(store_class, folder)
    for image, who in (("a", "me"), ("b", "you")):
        store.save_label(image, str(picture(tmp_path / "l.png", 1)), "final", {"who": who})
    for name in ("a.png", "b.png"):
        (folder / name).unlink()
    store.refresh()
    assert store.list_images() == []
    for name in ("a.png", "b.png"):
        picture(folder / name, 3)
    picture(folder / "labels" / "final" / "b.png", 2)  # another label: not what is remembered
    store.refresh()
    assert store.get_label_info("a", "final")["who"] == "me"
    assert "who" not in store.get_label_info("b", "final")


@pytest.fixture
def watched(folder: Path) -> Iterator[Any]:
    """A datastore that watches its folder."""
    store = open_store(SafeDatastore, folder, auto_reload=True)
    try:
        yield store
    finally:
        store._observer.stop()
        store._observer.join()


def until(condition: Callable[[], bool]) -> bool:
    waiter = threading.Event()
    return any(condition() or waiter.wait(0.02) for _ in range(500))


def test_the_watched_folder(watched: Any, folder: Path, tmp_path: Path) -> None:
    picture(folder / "c.png", 1)
    assert until(lambda: "c" in watched.list_images())
    picture(folder / ".part.d.png", 1).rename(folder / "d.png")  # as rsync does
    assert until(lambda: "d" in watched.list_images())
    (folder / "b.png").unlink()
    assert until(lambda: "b" not in watched.list_images())
    picture(folder / "labels" / "final" / "a.png", 1)
    assert until(lambda: watched.get_labeled_images() == ["a"])


def test_its_own_changes_are_no_news(
    watched: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[str] = []
    monkeypatch.setattr(watched, "refresh", lambda: followed.append("!"))
    seen: list[Any] = []
    follow = watched._on_any_event

    def spy(event: Any) -> None:
        follow(event)
        seen.append(event)

    watched._handler.on_moved = watched._handler.on_deleted = watched._handler.on_created = spy
    label = str(picture(tmp_path / "l.png", 1))
    watched.save_label("a", label, "final", {})
    watched.add_image("new", label, {})
    watched.update_image_info("a", {"x": 1})
    watched.remove_label("a", "final")
    watched.remove_image("b")
    deleted = str(folder / "b.png")
    assert until(lambda: any(deleted in str(e.src_path) for e in seen))
    assert followed == []
    picture(folder / "news.png", 1)
    assert until(lambda: followed != [])


def test_reading_costs_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(SafeDatastore, folder)
    monkeypatch.setattr(DatastoreFile, "_locked", None)
    assert store.list_images() == ["a", "b"]
    assert store.status()["total"] == 2


# --- through MONAI Label's endpoints -------------------------------------------------------------


def test_uploads_that_would_leave_the_folder(client: TestClient, studies: Path) -> None:
    content = (studies / "photo.png").read_bytes()
    outside = sorted(studies.parent.glob("*"))
    response = client.put(
        "/datastore/image", params={"image": "../../x"}, files={"file": ("x.png", content)}
    )
    assert response.status_code == 422
    assert "a path cannot be an image's id" in detail(response)
    for params, code in (
        ({"image": "photo", "tag": "../../up"}, 422),
        ({"image": "../photo"}, 404),
    ):
        response = client.put(
            "/datastore/label", params=params, files={"label": ("x.png", content)}
        )
        assert response.status_code == code
    assert sorted(studies.parent.glob("*")) == outside


def test_deleting_twice_is_told(client: TestClient) -> None:
    assert client.delete("/datastore/image", params={"id": "photo"}).status_code == 200
    assert client.delete("/datastore/image", params={"id": "photo"}).status_code == 404
    response = client.delete("/datastore/label", params={"id": "case", "tag": "final"})
    assert response.status_code == 404
