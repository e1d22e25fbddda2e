"""Scores on disk."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from support.bundles import bundle_of

from esp_medsam_app.active_learning.score_cache import (
    ScoreCache,
    ScoreKey,
    fingerprint,
    weights_version,
)
from esp_medsam_app.inference.assessment import Assessment
from esp_medsam_app.modalities import Modality
from esp_medsam_app.weights import Bundle
from esp_medsam_app.weights.bundle import DECODER, controller_file

KEY = ScoreKey("case", "10 5", "ct_liver", "v1")


def assessment(uncertainty: float = 0.5) -> Assessment:
    return Assessment(uncertainty, 0.25, 0.75, np.arange(4, dtype=np.float32) / 3, 7)


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    ticks = count(1000)
    return ScoreCache(tmp_path / "scores.sqlite3", clock=lambda: float(next(ticks)))


def same(one: Assessment | None, other: Assessment) -> bool:
    return (
        one is not None
        and (one.uncertainty, one.disagreement, one.entropy, one.slices)
        == (other.uncertainty, other.disagreement, other.entropy, other.slices)
        and np.array_equal(one.embedding, other.embedding)
        and one.embedding.dtype == np.float32
    )


def test_what_was_put_is_there_for_other_processes_too(cache: ScoreCache) -> None:
    assert cache.get(KEY) is None
    cache.put(KEY, assessment())
    assert same(ScoreCache(cache.path).get(KEY), assessment())


@pytest.mark.parametrize(
    "other", [{"image": "x"}, {"fingerprint": "10 6"}, {"modality": "x"}, {"version": "v2"}]
)
def test_it_belongs_to_its_key_alone(cache: ScoreCache, other: dict[str, str]) -> None:
    cache.put(KEY, assessment())
    assert cache.get(replace(KEY, **other)) is None


def test_a_changed_file_replaces_its_score(cache: ScoreCache) -> None:
    cache.put(KEY, assessment())
    changed = replace(KEY, fingerprint="11 6")
    cache.put(changed, assessment(0.9))
    assert cache.get(KEY) is None
    assert cache.known("ct_liver", "v1") == {"case": "11 6"}
    assert cache.scores("ct_liver", "v1")["case"].uncertainty == 0.9


def test_the_newest_two_weights_are_kept(cache: ScoreCache) -> None:
    other = replace(KEY, modality="xray_chest", version="v0")
    cache.put(other, assessment())
    for version in ("v1", "v2", "v3"):
        cache.put(replace(KEY, version=version), assessment())
    there = [v for v in ("v1", "v2", "v3") if cache.get(replace(KEY, version=v)) is not None]
    assert there == ["v2", "v3"]
    assert cache.get(other) is not None


def test_new_weights_take_over_when_nearly_all_is_scored(cache: ScoreCache) -> None:
    for number in range(10):
        cache.put(replace(KEY, image=str(number)), assessment(0.1))
    tables = []
    for number in range(10):
        cache.put(replace(KEY, image=str(number), version="v2"), assessment(0.2))
        table = cache.table("ct_liver", "v2")
        assert len(table) >= 9
        tables.append({found.uncertainty for found in table.values()})
    assert tables == [{0.1}] * 8 + [{0.2}] * 2
    assert cache.table("spots", "v2") == {}


@pytest.mark.parametrize(
    "damage",
    ["embedding = x'0102'", "embedding = NULL", "uncertainty = 'much'", "slices = NULL",
     "entropy = 9e999"],
)  # fmt: skip
def test_an_unreadable_entry_is_absent(cache: ScoreCache, damage: str) -> None:
    cache.put(KEY, assessment())
    cache.put(replace(KEY, image="sound"), assessment())
    with sqlite3.connect(cache.path) as connection:
        connection.execute(f"UPDATE scores SET {damage} WHERE image = 'case'")
    assert cache.get(KEY) is None
    assert list(cache.known("ct_liver", "v1")) == list(cache.table("ct_liver", "v1")) == ["sound"]
    cache.put(KEY, assessment())
    assert same(cache.get(KEY), assessment())


def test_a_truncated_file_is_begun_anew(cache: ScoreCache) -> None:
    for number in range(200):
        cache.put(replace(KEY, image=str(number)), assessment())
    os.truncate(cache.path, cache.path.stat().st_size // 2)
    assert cache.get(KEY) is None
    cache.put(KEY, assessment())
    assert same(cache.get(KEY), assessment())


def test_a_disk_without_rights_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        ScoreCache(tmp_path / "file" / "scores.sqlite3").put(KEY, assessment())


def test_failures_and_images_that_are_gone(cache: ScoreCache) -> None:
    cache.put(KEY, assessment())
    cache.fail("case", "11 6", "cut off")
    cache.fail("broken", "1 1", "no image")
    cache.put(replace(KEY, image="sound"), assessment())
    assert cache.failed() == {"case": "11 6", "broken": "1 1"}
    assert cache.reasons()["broken"] == "no image"
    assert list(cache.table("ct_liver", "v1")) == ["sound"]
    cache.retain(["case"])
    assert list(cache.failed()) == ["case"]
    assert cache.table("ct_liver", "v1") == {}


def test_a_score_ends_a_failure(cache: ScoreCache) -> None:
    cache.fail("case", "1 1", "cut off")
    cache.put(KEY, assessment())
    assert cache.failed() == {}


def test_what_was_asked_for_lately(cache: ScoreCache) -> None:
    for modality in ("a", "b", "c", "b"):
        cache.ask(modality)
    assert cache.asked() == ["b", "c", "a"]
    assert cache.asked(within=2.5) == ["b"]


def test_fingerprints_of_files_and_series(tmp_path: Path) -> None:
    file, series = tmp_path / "a.nii", tmp_path / "series"
    file.write_bytes(b"abc")
    series.mkdir()
    (series / "1.dcm").write_bytes(b"1")
    marks = [fingerprint(file), fingerprint(series)]
    assert [fingerprint(file), fingerprint(series)] == marks
    # of the same size, a nanosecond later
    file.write_bytes(b"abd")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    (series / "2.dcm").write_bytes(b"2")
    assert fingerprint(file) != marks[0]
    assert fingerprint(series) != marks[1]
    with pytest.raises(OSError, match="none"):
        fingerprint(tmp_path / "none")


def test_weights_are_told_by_what_takes_part() -> None:
    a, b = (
        Modality(name=name, title="", description="", dimension=2, labels={"x": 1})
        for name in ("a", "b")
    )
    bundle = bundle_of(a, b)

    def with_files(**sums: str) -> Bundle:
        files = {DECODER: sums.get("decoder", "d")} | {
            controller_file(name): sums.get(name, name) for name in ("a", "b")
        }
        return Bundle(bundle.path, bundle.description.model_copy(update={"files": files}))

    plain = weights_version(with_files(), "a")
    assert weights_version(with_files(b="new"), "a") == plain
    assert (
        len({weights_version(with_files(**s), "a") for s in ({}, {"a": "new"}, {"decoder": "n"})})
        == 3
    )
    # not trained yet
    assert weights_version(bundle, "c") == weights_version(bundle, "d")
