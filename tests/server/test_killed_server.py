"""kill -9 at each step of submitting a label and of publishing a version: nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore
from PIL import Image
from support.killed import killed_at_each_step
from support.version_stores import ONE, add_versions, small_bundle

from esp_medsam_app.server.local_datastore import SafeDatastore
from esp_medsam_app.weights.versions import VersionStore


def picture(path: Path, value: int) -> Path:
    Image.fromarray(np.full((40, 40), value, np.uint8)).save(path)
    return path


def value_of(path: str | Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image).max())


def opened(folder: Path, kind: type = SafeDatastore) -> LocalDatastore:
    store: LocalDatastore = kind(str(folder), extensions=["*.png", "*.tif"])
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images; `a` has label 1 and `b` label 7."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in "abc":
        picture(folder / f"{name}.png", 100)
    store = opened(folder)
    store.save_label("a", str(picture(tmp_path / "1.png", 1)), "final", {"is": 1})
    store.save_label("b", str(picture(tmp_path / "7.png", 7)), "final", {"is": 7})
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        SafeDatastore,
        pytest.param(
            LocalDatastore,
            marks=pytest.mark.xfail(strict=True, raises=Exception, reason="MONAI Label 0.8.5"),
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_submitting(kind: type, suffix: str, folder: Path, tmp_path: Path) -> None:
    new = str(picture(tmp_path / f"2{suffix}", 2))

    def submit() -> None:
        opened(folder, kind).save_label("a", new, "final", {"is": 2})

    seen = set()
    for _ in killed_at_each_step(submit):
        store = opened(folder, kind)
        assert store.list_images() == ["a", "b", "c"]
        assert value_of(store.get_label_uri("b", "final")) == 7
        assert store.get_label_info("b", "final")["is"] == 7
        now = value_of(store.get_label_uri("a", "final"))
        assert now in (1, 2)
        assert store.get_label_info("a", "final")["is"] == now
        assert hidden_files(folder) == []
        seen.add(now)
        if now == 2:
            (before, *_) = store.label_versions("a", "final")
            assert value_of(before) == 1
    assert value_of(store.get_label_uri("a", "final")) == 2
    assert store.get_label_info("a", "final")["is"] == 2
    assert 1 in seen


def hidden_files(folder: Path) -> list[str]:
    """Less the lock."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def test_removing_a_label(folder: Path) -> None:
    """Half-way, its file would come back as a new label without names."""
    gone = []
    for _ in killed_at_each_step(lambda: opened(folder).remove_label("a", "final")):
        store = opened(folder)
        tags = store.get_labels_by_image_id("a")
        gone.append(not tags)
        if tags:
            assert value_of(store.get_label_uri("a", "final")) == 1
            assert store.get_label_info("a", "final")["is"] == 1
        else:
            before = store.label_versions("a", "final")[-1]
            assert value_of(before) == 1
            assert json.loads(before.with_suffix(".json").read_bytes())["is"] == 1
            # the next one that is killed has a label to remove as well
            store.save_label("a", str(before), "final", {"is": 1})
        assert hidden_files(folder) == []
    assert {True, False} == set(gone)


def test_removing_an_image(folder: Path) -> None:
    for _ in killed_at_each_step(lambda: _remove_image(folder)):
        store = opened(folder)
        assert ("a" in store.list_images()) == (folder / "a.png").exists()
        assert ("a" in store.list_images()) == (folder / "labels/final/a.png").exists()
        if "a" in store.list_images():
            assert store.get_label_info("a", "final")["is"] == 1


def _remove_image(folder: Path) -> None:
    store = opened(folder)
    if "a" in store.list_images():
        store.remove_image("a")


def test_submitting_the_first_label(folder: Path, tmp_path: Path) -> None:
    new = str(picture(tmp_path / "3.png", 3))
    for _ in killed_at_each_step(lambda: _save(folder, "c", new)):
        store = opened(folder)
        tags = store.get_labels_by_image_id("c")
        assert not tags or value_of(store.get_label_uri("c", "final")) == 3
        assert value_of(store.get_label_uri("a", "final")) == 1
        assert json.loads((folder / "datastore_v2.json").read_text())
    assert value_of(store.get_label_uri("c", "final")) == 3


def _save(folder: Path, image: str, file: str) -> None:
    opened(folder).save_label(image, file, "final", {})


def test_adding_and_publishing_a_version(tmp_path: Path) -> None:
    base = small_bundle(tmp_path / "bundle")
    path = tmp_path / "versions"
    store = VersionStore(path, base)
    add_versions(store, ONE, 1)
    store.publish("one", 1)

    def learn() -> None:
        import torch

        torch.set_num_threads(1)  # threads do not outlive a fork
        own = VersionStore(path, base)
        add_versions(own, ONE, 1, first=5)
        own.publish("one", own.versions("one")[-1].number)

    numbers = []
    for _ in killed_at_each_step(learn):
        again = VersionStore(path, base)
        served = again.bundle().version("one")
        numbers.append(served)
        assert again.serving()["one"] == served
        again.bundle().load_network(["one"])
        assert [version.number for version in again.versions("one")][:2] == [0, 1]
    # whatever was killed, what served went on, until something newer took its place
    assert numbers == sorted(numbers)
    assert numbers[0] == 1
    assert numbers[-1] == VersionStore(path, base).versions("one")[-1].number
