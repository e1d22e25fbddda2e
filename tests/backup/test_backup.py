"""Backups without a server process: what is in them, and what is refused."""

from __future__ import annotations

import io
import json
import sqlite3
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.version_stores import ONE, changed, small_bundle

from esp_medsam_app import cli
from esp_medsam_app.backup import archive
from esp_medsam_app.backup.archive import write_backup
from esp_medsam_app.backup.places import STUDIES, Place, places_of
from esp_medsam_app.backup.restoring import read_contents, restore_backup
from esp_medsam_app.errors import InputError
from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.server.served import Served, note_served, read_served
from esp_medsam_app.weights.bundle import Bundle
from esp_medsam_app.weights.versions import open_versions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("small"))


class Ward:
    """The folders that a server leaves."""

    def __init__(self, folder: Path, bundle: Bundle, studies: Path, versions: Path | None) -> None:
        self.data, self.studies, self.bundle = folder / "data", studies, bundle
        self.app = self.data / "app"
        studies.mkdir(parents=True)
        for name in "ab":
            Image.fromarray(np.full((3, 4), ord(name), np.uint8)).save(studies / f"{name}.png")
        self.versions = versions or self.app / "model" / "versions"
        self.store = SafeDatastore(str(studies), extensions=["*.png"])
        self.submit("a", 1)
        self.submit("a", 2)
        training = self.app / "model" / "training" / "one"
        (training / "runs" / "run_1").mkdir(parents=True)
        (training / "runs" / "run_1" / "views.bin").write_bytes(b"of no use")
        (training / "ledger.json").write_text("{}")
        with closing(sqlite3.connect(training.parent / "mlflow.db")) as connection:
            connection.execute("CREATE TABLE runs (name TEXT)")
            connection.commit()
        trained = open_versions(self.versions, bundle)
        self.versions.mkdir(parents=True)
        network = changed(bundle.load_network(["one"]), ONE, 1)
        trained.add(network, ONE, state="published", parent=0, reason="better")
        trained.publish("one", 1)
        (self.app / "logs").mkdir()
        (self.app / "logs" / "audit.jsonl").write_text("{}\n")
        note_served(self.app, Served(str(studies), studies, self.versions))

    def submit(self, image: str, value: int) -> None:
        file = self.data.parent / "label.png"
        Image.fromarray(np.full((3, 4), value, np.uint8)).save(file)
        self.store.save_label(image, str(file), "final", {"label_info": []})


Make = Callable[..., Ward]


@pytest.fixture
def make(tmp_path: Path, bundle: Bundle) -> Make:
    def made(studies: str = "data/studies", versions: str | None = None) -> Ward:
        folder = tmp_path / "ward"
        return Ward(folder, bundle, folder / studies, folder / versions if versions else None)

    return made


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize(
    ("studies", "versions"), [("data/studies", None), ("elsewhere/images", "elsewhere/versions")]
)
def test_all_comes_back(
    make: Make, tmp_path: Path, studies: str, versions: str | None, suffix: str
) -> None:
    """Wherever the studies lie: the backup knows what the server served."""
    ward = make(studies, versions)
    file, fresh = tmp_path / f"medsam{suffix}", tmp_path / "fresh"
    assert run("backup", "--data", ward.data, "-o", file) == 0
    assert run("restore", file, "--data", fresh) == 0
    assert not list(fresh.rglob(".*"))
    there = SafeDatastore(str(fresh / "studies"), extensions=["*.png"])
    assert there.list_images() == ["a", "b"]
    assert np.asarray(Image.open(there.get_label_uri("a", "final"))).max() == 2
    assert len(there.label_versions("a", "final")) == 1
    assert there.get_label_info("a", "final") == ward.store.get_label_info("a", "final")
    store = open_versions(fresh / "app" / "model" / "versions", ward.bundle)
    assert store.serving()["one"] == 1
    store.bundle().load_network(["one"])
    training = fresh / "app" / "model" / "training"
    assert (training / "one" / "ledger.json").is_file()
    assert (fresh / "app" / "logs" / "audit.jsonl").is_file()
    with closing(sqlite3.connect(training / "mlflow.db")) as connection:
        assert connection.execute("SELECT * FROM runs").fetchall() == []
    assert not (training / "one" / "runs").exists()
    # patients are in it
    assert file.stat().st_mode & 0o077 == 0


def test_images_and_labels_go_where_they_are_wanted(make: Make, tmp_path: Path) -> None:
    ward, file = make(), tmp_path / "x.tar"
    assert run("backup", "--data", ward.data, "-o", file) == 0
    assert run("restore", file, "--data", tmp_path / "d", "--studies", tmp_path / "images") == 0
    assert (tmp_path / "images" / "labels" / "final" / "a.png").is_file()
    assert not (tmp_path / "d" / "studies").exists()


def test_a_backup_beside_a_server_that_writes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is submitted while files are written is in it too, image, label and list alike."""
    ward, file = make(), tmp_path / "x.tar"
    once = threading.Event()
    add_all = archive._Writer.add_all

    def then_submit(writer: Any, places: Any) -> None:
        add_all(writer, places)
        if not once.is_set():
            once.set()
            ward.submit("b", 7)
            ward.submit("a", 8)
            ward.store.remove_image("b")

    monkeypatch.setattr(archive._Writer, "add_all", then_submit)
    write_backup(file, "x", [Place(STUDIES, ward.studies)])
    restore_backup(file, {STUDIES: tmp_path / "studies"})
    there = SafeDatastore(str(tmp_path / "studies"), extensions=["*.png"])
    assert there.list_images() == ["a"]
    assert np.asarray(Image.open(there.get_label_uri("a", "final"))).max() == 8
    assert len(there.label_versions("a", "final")) == 2
    assert not (tmp_path / "studies" / "b.png").exists()


def test_a_log_that_is_cut_meanwhile(tmp_path: Path) -> None:
    """As logrotate does with `copytruncate`."""
    log = tmp_path / "app.log"
    log.write_bytes(b"x" * 100)
    with log.open("rb") as opened:
        log.write_bytes(b"y" * 30)
        digest = archive._Digest(opened)
        assert digest.read(100) == b"y" * 30 + b"\n" * 70


def test_the_lock_is_the_server_s(make: Make, tmp_path: Path) -> None:
    """While the last changes are written, a submission waits."""
    ward = make()
    with archive._settled([Place(STUDIES, ward.studies)]):
        thread = threading.Thread(target=ward.submit, args=("b", 1))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(30)
    assert "final" in ward.store.get_labels_by_image_id("b")


@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "other", "text"])
def test_what_is_no_whole_backup_is_not_restored(make: Make, tmp_path: Path, harm: str) -> None:
    ward, file = make(), tmp_path / "x.tar"
    assert run("backup", "--data", ward.data, "-o", file) == 0
    content = file.read_bytes()
    if harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "changed":
        place = content.index((ward.studies / "labels" / "final" / "a.png").read_bytes())
        file.write_bytes(content[: place + 20] + b"\xff" + content[place + 21 :])
    elif harm == "text":
        file.write_text("no tar at all")
    else:
        name = "../../evil" if harm == "other" else "studies/a.png"
        with tarfile.open(file, "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(InputError):
        restore_backup(file, {STUDIES: tmp_path / "new" / "studies"})
    assert not (tmp_path / "new" / "studies").exists()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".restore")]


def test_nothing_is_overwritten(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ward, file = make(), tmp_path / "x.tar"
    assert run("backup", "--data", ward.data, "-o", file) == 0
    assert run("backup", "--data", ward.data, "-o", file) == 2
    assert "such a file already" in capsys.readouterr().err
    assert run("restore", file, "--data", ward.data) == 2
    assert "does not replace" in capsys.readouterr().err
    assert run("backup", "--data", ward.data, "-o", ward.studies / "x.tar") == 2
    assert "hold itself" in capsys.readouterr().err
    assert run("backup", "--data", ward.data, "-o", tmp_path / "x.zip") == 2
    assert "tar file" in capsys.readouterr().err


def test_where_the_labels_are_is_known_or_asked(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ward = make("elsewhere/images")
    note = ward.app / "model" / "served.json"
    # of a container, whose folder is called otherwise here
    assert json.loads(note.read_text())["versions"] == "model/versions"
    assert read_served(ward.app) == Served(str(ward.studies), ward.studies, ward.versions)
    note.write_text("{")
    assert run("backup", "--data", ward.data, "-o", tmp_path / "x.tar") == 2
    assert "--studies" in capsys.readouterr().err
    note.unlink()
    assert run("backup", "--data", ward.data, "-o", tmp_path / "x.tar") == 2
    assert "--studies" in capsys.readouterr().err
    backup = ("backup", "--data", ward.data, "-o", tmp_path / "x.tar")
    assert run(*backup, "--studies", tmp_path / "nowhere") == 2
    assert "not there" in capsys.readouterr().err
    assert run(*backup, "--studies", ward.studies) == 0
    names = read_contents(tmp_path / "x.tar").files
    assert {"studies/a.png", "studies/datastore_v2.json", "studies/labels/final/a.png"} <= set(
        names
    )
    assert run("backup", "--app", tmp_path / "none", "-o", tmp_path / "y.tar") == 2
    assert "no such folder of an app" in capsys.readouterr().err


def test_of_a_pacs_labels_are_kept_and_images_are_not(make: Make, tmp_path: Path) -> None:
    ward = make()
    own = ward.data / "dicom" / "0123"
    for name in ("labels/final/1.2.nii.gz", "outbox/1.2.json", "datastore_v2.json",
                 "series/1.2/1/a.dcm", "converted/1.2.nii.gz"):  # fmt: skip
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(name)
    pacs = "http://pacs:8042/dicom-web"
    note_served(ward.app, Served(pacs, own, ward.versions))
    studies, places = places_of(ward.app, ward.data, None, None)
    assert studies == pacs
    write_backup(tmp_path / "x.tar", studies, places)
    names = read_contents(tmp_path / "x.tar").files
    assert {name for name in names if name.startswith("dicom")} == {
        f"dicom/0123/{name}"
        for name in ("labels/final/1.2.nii.gz", "outbox/1.2.json", "datastore_v2.json")
    }
    assert not [name for name in names if name.startswith("studies")]
