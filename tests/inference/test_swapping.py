"""Other versions of a modality's weights while images are being segmented."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from support.version_stores import NEW, ONE, SIDE, TWO, add_versions, picture, small_bundle

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.weights import Bundle
from esp_medsam_app.weights.versions import VersionStore

TILES = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VersionStore:
    """Three versions of ONE, one of TWO and of NEW."""
    folder = tmp_path_factory.mktemp("swapping")
    store = VersionStore(folder / "versions", small_bundle(folder / "bundle"))
    add_versions(store, ONE, 3)
    add_versions(store, TWO, 1)
    add_versions(store, NEW, 1, first=0)
    return store


@pytest.fixture(autouse=True)
def nothing_serves(store: VersionStore) -> Iterator[None]:
    yield
    for name in ("one", "two", "new"):
        store.restore(name, 0)


@pytest.fixture(scope="module")
def own(store: VersionStore) -> Segmenter:
    """The bundle's own weights."""
    return Segmenter(store.base, device="cpu")


def logits(segmenter: Segmenter, modality: str) -> torch.Tensor:
    """Finer than masks: they differ where a single bit of a weight does."""
    return segmenter.logits(TILES, modality)


def parts(segmenter: Segmenter, modality: str) -> list[torch.nn.Module]:
    network = segmenter._network
    return [network.controllers[modality], network.queries[modality]]


def fresh(bundle: Bundle) -> Segmenter:
    return Segmenter(bundle, device="cpu")


def test_it_segments_as_one_that_was_loaded_anew(store: VersionStore, own: Segmenter) -> None:
    segmenter = own
    for number in (1, 3, 0, 2):
        store.restore("one", number)
        segmenter = segmenter.with_bundle(store.bundle())
        assert segmenter.version("one") == number
        assert torch.equal(logits(segmenter, "one"), logits(fresh(store.bundle()), "one"))


def test_the_others_are_bit_identical(store: VersionStore, own: Segmenter) -> None:
    before = logits(own, "two")
    store.publish("one", 1)
    store.publish("new", 1)
    segmenter = own.with_bundle(store.bundle())
    assert torch.equal(logits(segmenter, "two"), before)
    assert segmenter.version("two") == 0


def test_the_one_before_is_not_touched(store: VersionStore, own: Segmenter) -> None:
    before = {name: logits(own, name) for name in ("one", "two")}
    store.publish("one", 1)
    store.publish("new", 1)
    after = own.with_bundle(store.bundle())
    assert not torch.equal(logits(after, "one"), before["one"])
    for name, expected in before.items():
        assert torch.equal(logits(own, name), expected)
    assert own.version("one") == 0
    with pytest.raises(UnknownNameError):
        own.segment(picture(), "new")


def test_only_what_differs_is_loaded(
    store: VersionStore, own: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("one", 1)
    loaded: list[str] = []
    load = Bundle.load_modality
    monkeypatch.setattr(Bundle, "load_modality", lambda *a: loaded.append(a[-1]) or load(*a))
    after = own.with_bundle(store.bundle())
    assert loaded == ["one"]
    assert after._network.encoder is own._network.encoder
    assert after._network.decoder is own._network.decoder
    assert parts(after, "two") == parts(own, "two")
    assert parts(after, "one") != parts(own, "one")
    assert after._turn is own._turn
    assert not any(p.requires_grad for part in parts(after, "one") for p in part.parameters())
    assert not any(module.training for part in parts(after, "one") for module in part.modules())


def test_modalities_come_and_go(store: VersionStore, own: Segmenter) -> None:
    store.publish("new", 1)
    after = own.with_bundle(store.bundle())
    assert after.segment(picture(), "new").any()
    assert after.parameters("one") == own.parameters("one")
    store.restore("new", 0)
    gone = after.with_bundle(store.bundle())
    assert gone._network.modalities == ["one", "two"]
    assert after.segment(picture(), "new").any()


def test_a_load_that_fails_leaves_all_as_it_was(store: VersionStore, own: Segmenter) -> None:
    before = logits(own, "one")
    store.publish("one", 2)
    bundle = store.bundle()
    file = store.path / "one" / "2" / "weights.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1])
        with pytest.raises(WeightsError, match="damaged"):
            own.with_bundle(bundle)
    finally:
        file.write_bytes(content)
    assert torch.equal(logits(own, "one"), before)


def test_no_image_is_segmented_by_two_versions(store: VersionStore, own: Segmenter) -> None:
    """While one thread swaps back and forth, every mask of the others is one version's."""
    image = picture()
    expected: dict[int, np.ndarray] = {}
    for number in (0, 1, 2, 3):
        store.restore("one", number)
        expected[number] = fresh(store.bundle()).segment(image, "one")
    assert len({mask.tobytes() for mask in expected.values()}) == 4
    two = own.segment(image, "two")
    current = [own]
    done = threading.Event()
    seen: list[int] = []

    def work() -> None:
        while not done.is_set():
            segmenter = current[0]
            number = segmenter.version("one")
            assert np.array_equal(segmenter.segment(image, "one"), expected[number])
            assert np.array_equal(segmenter.segment(image, "two"), two)
            seen.append(number)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work) for _ in range(2)]
        try:
            for number in (1, 2, 0, 3):
                store.restore("one", number)
                current[0] = current[0].with_bundle(store.bundle(like=current[0].bundle))
                assert np.array_equal(current[0].segment(image, "one"), expected[number])
        finally:
            done.set()
        for future in futures:
            future.result()
    assert len(set(seen)) > 1


def test_versions_are_the_bundle_s_own_without_a_store(tmp_path: Path, own: Segmenter) -> None:
    assert own.version("one") == 0
    again = own.with_bundle(own.bundle)
    assert parts(again, "one") == parts(own, "one")
