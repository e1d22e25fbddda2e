"""Versions: kept whole, chosen in one step, and never served when something is wrong with them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.version_stores import NEW, ONE, TWO, add_versions, changed, small_bundle

from esp_medsam_app.errors import EspMedSamError, UnknownNameError, WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks.esp_medsam import Design
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights import Bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM
from esp_medsam_app.weights.bundle import (
    controller_file,
    load_bundle,
    round_modality,
    starter_bundle_path,
)
from esp_medsam_app.weights.version_files import SERVING, SERVING_COPY, WEIGHTS, Cases, Dice
from esp_medsam_app.weights.versions import VersionStore, open_versions, overview

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def filled(base: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three versions of ONE, one of NEW; none serves."""
    store = VersionStore(tmp_path_factory.mktemp("versions"), base)
    add_versions(store, ONE, 3)
    add_versions(store, NEW, 1)
    return store.path


@pytest.fixture
def store(base: Bundle, filled: Path, tmp_path: Path) -> VersionStore:
    shutil.copytree(filled, tmp_path / "versions")
    return VersionStore(tmp_path / "versions", base)


def weights_of(store: VersionStore, number: int, modality: str = "one") -> Path:
    return store.path / modality / str(number) / WEIGHTS


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def now(store: VersionStore, modality: str = "one") -> int:
    """What serves, for one who has just come."""
    return VersionStore(store.path, store.base).bundle().version(modality)


def test_nothing_serves_before_it_is_published(store: VersionStore, base: Bundle) -> None:
    assert store.bundle() is base
    assert store.serving() == {"new": 0, "one": 0, "two": 0}
    assert [version.number for version in store.versions("one")] == [0, 1, 2, 3]
    assert [version.number for version in store.versions("new")] == [1]


def test_a_version_keeps_what_was_said_of_it(base: Bundle, tmp_path: Path) -> None:
    store = VersionStore(tmp_path / "versions", base)
    added = store.add(
        changed(base.load_network(["two"]), TWO, 7),
        TWO,
        state="kept_back",
        parent=0,
        reason="worse",
        cases=Cases(train=("a", "b"), validation=("c", "d")),
        dice=Dice(before={"c": 0.5, "d": 0.7}, after={"c": 0.4, "d": 0.6}),
        training={"steps": 3},
    )
    found = VersionStore(store.path, base).get("two", 1)
    assert found == added
    assert found.modality == TWO
    assert found.created is not None
    assert found.created.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert found.dice.means == {"before": pytest.approx(0.6), "after": pytest.approx(0.5)}
    assert (found.parent, found.state, found.reason) == (0, "kept_back", "worse")
    assert found.training == {"steps": 3}
    written = json.loads((store.path / "two" / "1" / "version.json").read_text())
    assert written["created"].endswith("Z")
    assert written["dice"]["means"]["after"] == pytest.approx(0.5)


def test_what_is_loaded_is_what_was_added(base: Bundle, tmp_path: Path) -> None:
    """Judged after rounding, a network gives the masks that it gives when it is served."""
    store = VersionStore(tmp_path / "versions", base)
    network = changed(base.load_network(), ONE, 9)
    before = network(IMAGE, "one").mask_logits
    round_modality(network, "one")
    expected = network(IMAGE, "one").mask_logits
    assert not torch.equal(before, expected)
    store.add(network, ONE, state="published", parent=0)
    store.publish("one", 1)
    assert torch.equal(store.bundle().load_network()(IMAGE, "one").mask_logits, expected)


def test_published_serves_and_the_rest_stays(store: VersionStore, base: Bundle) -> None:
    store.publish("one", 2)
    bundle = store.bundle()
    bundle.verify()
    assert {name: bundle.version(name) for name in bundle.modalities} == {"one": 2, "two": 0}
    assert bundle.description.files[controller_file("one")] == store.get("one", 2).sha256
    own, served = base.load_network(), bundle.load_network()
    assert torch.equal(own(IMAGE, "two").mask_logits, served(IMAGE, "two").mask_logits)
    assert not torch.equal(own(IMAGE, "one").mask_logits, served(IMAGE, "one").mask_logits)


def test_a_modality_that_the_bundle_lacks(store: VersionStore, base: Bundle) -> None:
    with pytest.raises(UnknownNameError):
        store.bundle().modality("new")
    store.publish("new", 1)
    bundle = store.bundle()
    assert bundle.modality("new") == NEW
    assert list(bundle.told_apart) == ["one", "two"]
    assert bundle.load_network(["new"])(IMAGE).mask_logits.shape[1] == 1
    store.restore("new", 0)
    assert store.bundle() is base


def test_a_snapshot_stays_as_it_is(store: VersionStore) -> None:
    store.publish("one", 1)
    bundle = store.bundle()
    store.publish("one", 2)
    assert bundle.version("one") == 1
    assert bundle.file(controller_file("one")) == weights_of(store, 1)


def test_scores_of_replaced_weights_are_left_out(store: VersionStore, base: Bundle) -> None:
    scores = {"one": {"test": 1}, "two": {"test": 2}}
    store.base = replace(base, description=base.description.model_copy(update={"scores": scores}))
    store.publish("one", 1)
    assert store.bundle().description.scores == {"two": {"test": 2}}


def test_history(store: VersionStore) -> None:
    store.publish("one", 1, reason="better")
    store.publish("new", 1)
    store.publish("one", 3)
    store.publish("one", 3)
    store.restore("one", 0, "it was bad")
    changes = [(c.number, c.before, c.reason) for c in store.history("one")]
    assert changes == [(1, 0, "better"), (3, 1, ""), (0, 3, "it was bad")]
    assert len(store.history()) == 4
    assert [c.time for c in store.history()] == sorted(c.time for c in store.history())


def test_kept_back_serves_by_an_admin_s_word_only(base: Bundle, tmp_path: Path) -> None:
    store = VersionStore(tmp_path / "versions", base)
    network = changed(base.load_network(["one"]), ONE, 5)
    store.add(network, ONE, state="kept_back", parent=0, reason="worse")
    with pytest.raises(WeightsError, match=r"kept back \(worse\).*weights restore"):
        store.publish("one", 1)
    assert now(store) == 0
    store.restore("one", 1)
    assert now(store) == 1


def test_published_only_over_what_it_was_compared_with(store: VersionStore) -> None:
    store.publish("one", 1, over=0)
    with pytest.raises(WeightsError, match="version 1 of one serves by now, not 0"):
        store.publish("one", 2, over=0)
    assert now(store) == 1


def test_every_change_has_another_stamp(store: VersionStore) -> None:
    stamps = [store.stamp()]
    for number in (1, 2, 1, 2, 1, 0):
        store.restore("one", number)
        stamps.append(store.stamp())
    assert stamps[0] is None
    assert len(set(stamps)) == len(stamps)


@pytest.mark.parametrize("harm", [damage, truncate, Path.unlink])
def test_the_one_before_serves_when_weights_are_damaged(
    store: VersionStore, harm: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 3, 2):
        store.publish("one", number)
    harm(weights_of(store, 2))
    assert now(store) == 3
    assert "Version 2 of one cannot serve" in caplog.text
    assert "Version 3 of one serves in place of 2" in caplog.text
    harm(weights_of(store, 3))
    harm(weights_of(store, 1))
    assert now(store) == 0
    assert "one: the bundle's own serves" in caplog.text


def test_the_one_before_serves_when_a_description_is_damaged(store: VersionStore) -> None:
    store.publish("one", 1)
    store.publish("one", 2)
    truncate(store.path / "one" / "2" / "version.json")
    (store.path / "one" / "2" / "version.json").write_text("{}")
    assert now(store) == 1
    assert [version.number for version in store.versions("one")] == [0, 1, 3]
    (store.path / "one" / "1").rename(store.path / "one" / "7")
    assert now(store) == 0
    with pytest.raises(WeightsError, match="this is version 1 of one"):
        store.get("one", 7)


def test_a_damaged_one_beside_the_bundle_is_not_trained(store: VersionStore) -> None:
    store.publish("new", 1)
    damage(weights_of(store, 1, "new"))
    assert store.bundle() is store.base


def test_damage_after_the_look_is_found_on_loading(store: VersionStore) -> None:
    store.publish("one", 1)
    bundle = store.bundle()
    damage(weights_of(store, 1))
    with pytest.raises(WeightsError, match="damaged"):
        bundle.load_network()


@pytest.mark.parametrize("part", ["backbone", "decoder"])
def test_other_shared_weights(store: VersionStore, base: Bundle, part: str) -> None:
    """As after an update of the package."""
    store.publish("one", 1)
    said = base.description.model_copy(deep=True)
    if part == "backbone":
        said.backbone.sha256 = "0" * 64
    else:
        said.files["decoder.safetensors"] = "0" * 64
    after = VersionStore(store.path, Bundle(base.path, said))
    assert after.bundle() is after.base
    with pytest.raises(WeightsError, match="another backbone or decoder"):
        after.restore("one", 2)
    assert after.serving()["one"] == 1


def test_other_labels(store: VersionStore, base: Bundle) -> None:
    """The admin has given the modality other labels since."""
    store.publish("new", 1)
    other = Modality(**{**NEW.model_dump(), "labels": ["d", "e"]})
    after = VersionStore(store.path, base, {"new": other})
    assert after.bundle() is base
    with pytest.raises(WeightsError, match="its labels are d, not d, e"):
        after.restore("new", 1)
    with pytest.raises(WeightsError, match="its labels are d, not d, e"):
        after.add(changed(base.load_network([]), NEW, 1), NEW, state="published", parent=None)


@pytest.mark.parametrize(
    ("labels", "design", "message"),
    [({"a": 1, "x": 2}, {}, "1 queries for 2 labels"), ({"a": 1}, {"own_queries": False}, "share")],
)
def test_networks_that_cannot_be_kept(
    base: Bundle, tmp_path: Path, labels: dict[str, int], design: dict[str, bool], message: str
) -> None:
    store = VersionStore(tmp_path / "versions", base)
    network = new_network(LITE_MEDSAM, [ONE], design=Design(**design))
    modality = ONE.model_copy(update={"labels": labels})
    with pytest.raises(WeightsError, match=message):
        store.add(network, modality, state="published", parent=0)
    assert not store.path.exists()


def test_serving_json_that_is_damaged(
    store: VersionStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The second copy steps in, and the next change heals the first."""
    store.publish("one", 2)
    for content in ("", '{"serving": {"one": 2', '{"serving": {"one": "two"}}'):
        (store.path / SERVING).write_text(content)
        assert now(store) == 2
    assert f"{SERVING_COPY} is used" in caplog.text
    (store.path / SERVING).unlink()
    assert now(store) == 2
    VersionStore(store.path, store.base).restore("one", 1)
    assert json.loads((store.path / SERVING).read_text())["serving"] == {"one": 1}
    assert len(store.history()) == 2
    for name in (SERVING, SERVING_COPY):
        (store.path / name).write_text("")
    assert now(store) == 0


def test_names_from_outside_lead_nowhere(store: VersionStore) -> None:
    (store.path.parent / "secret" / "1").mkdir(parents=True)
    for name in ("../secret", "..", "", "knee"):
        with pytest.raises(UnknownNameError, match="Available: new, one, two"):
            store.get(name, 1)
        with pytest.raises(UnknownNameError):
            store.restore(name, 0)
    for number in (4, -1):
        with pytest.raises(UnknownNameError, match="Available: 0, 1, 2, 3"):
            store.restore("one", number)


def test_numbers_are_never_used_again(store: VersionStore) -> None:
    store.publish("one", 3)
    shutil.rmtree(store.path / "one" / "3")
    add_versions(store, ONE, 1)
    assert [version.number for version in store.versions("one")] == [0, 1, 2, 4]


@pytest.mark.parametrize("step", ["save_modality", "write_json", "sync"])
def test_power_loss_while_adding(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever step it comes at: the version is not there, and the next one is made."""

    def lost(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as context:
        context.setattr(f"esp_medsam_app.weights.versions.{step}", lost)
        # what a process that is gone cannot do either
        context.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            add_versions(store, ONE, 1)
    assert [version.number for version in store.versions("one")] == [0, 1, 2, 3]
    assert any((store.path / "one").glob(".*"))
    add_versions(store, ONE, 1)
    assert [version.number for version in store.versions("one")] == [0, 1, 2, 3, 4]
    assert not any((store.path / "one").glob(".*"))


@pytest.mark.parametrize("replaced", [0, 1])
def test_power_loss_while_publishing(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch, replaced: int
) -> None:
    """Before the first replacement the old one serves, after it the new one."""
    store.publish("one", 1)
    left = [replaced]
    replace_file = os.replace

    def lost(*names: Any) -> None:
        if not left[0]:
            raise SystemExit
        left[0] -= 1
        replace_file(*names)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", lost)
        with pytest.raises(SystemExit):
            store.publish("one", 2)
    assert now(store) == 1 + replaced
    store.publish("one", 3)
    assert now(store) == 3


def test_a_full_disk_is_told(store: VersionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esp_medsam_app.weights.versions.save_modality", full)
    with pytest.raises(EspMedSamError, match="No space left"):
        add_versions(store, ONE, 1)
    assert not any((store.path / "one").glob(".*"))


def test_processes_that_add_and_publish_at_the_same_time(store: VersionStore) -> None:
    """None loses the other's version or the other's choice."""
    context = multiprocessing.get_context("fork")
    network = changed(store.base.load_network(["one"]), ONE, 4)
    network = changed(network, NEW, 4)

    def work(modality: Modality) -> None:
        torch.set_num_threads(1)  # threads do not outlive a fork
        own = VersionStore(store.path, store.base)
        for _ in range(3):
            number = own.add(network, modality, state="published", parent=0).number
            own.publish(modality.name, number)

    processes = [context.Process(target=work, args=(m,)) for m in (ONE, ONE, NEW)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [version.number for version in store.versions("one")] == list(range(10))
    assert [version.number for version in store.versions("new")] == [1, 2, 3, 4]
    assert store.serving()["new"] == 4
    assert sorted(change.number for change in store.history("one")) == [4, 5, 6, 7, 8, 9]


def test_bundles_have_stores_of_their_own(base: Bundle, tmp_path: Path) -> None:
    starter = load_bundle()
    assert starter.path == starter_bundle_path()
    assert open_versions(tmp_path, starter).path == tmp_path
    own = open_versions(tmp_path, base).path
    assert own.parent == tmp_path
    assert own.name.startswith("bundle-")
    # not taken for a modality
    own.mkdir()
    (own / "1").mkdir()
    assert own.name not in open_versions(tmp_path, starter).modalities()


def test_overview(store: VersionStore, caplog: pytest.LogCaptureFixture) -> None:
    store.publish("one", 1)
    store.publish("one", 2)
    damage(weights_of(store, 2))
    found = json.loads(json.dumps(overview(store)))
    assert [(e["modality"], e["chosen"], e["serving"]) for e in found] == [
        ("new", 0, None),
        ("one", 2, 1),
        ("two", 0, 0),
    ]
    assert [version["number"] for version in found[1]["versions"]] == [0, 1, 2, 3]
    assert [change["before"] for change in found[1]["history"]] == [0, 1]
    with caplog.at_level(logging.WARNING), pytest.raises(UnknownNameError):
        overview(store, ["knee"])
