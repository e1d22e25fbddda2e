"""Image embeddings that are kept: what is reused, what never is, and how much is held."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_starter import TILE, small_starter

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.inference.embedding_cache import (
    EmbeddingCache,
    RememberedPasses,
    fingerprint,
)
from esp_medsam_app.modalities import Modality
from esp_medsam_app.samples.phantoms import nuclei
from esp_medsam_app.weights import Bundle, load_bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM

NUCLEI = "microscopy_nuclei"
# an embedding [1, 256, 16, 16] in float32
SIZE = 256 * 16 * 16 * 4


def embedding(value: float = 0) -> torch.Tensor:
    return torch.full((1, 4, 2, 2), float(value))


ONE = embedding().nbytes


def test_what_was_put_comes_back() -> None:
    cache = EmbeddingCache(10 * ONE)
    batch = torch.arange(32.0).view(2, 4, 2, 2)
    cache.put("a", 0, batch[:1])
    cache.put("a", 1, batch[1:])
    assert torch.equal(cache.get("a", 1), batch[1:])  # type: ignore[arg-type]
    assert cache.get("a", 2) is None
    assert cache.get("b", 0) is None
    assert cache.held == 2 * ONE
    kept = cache.get("a", 0)
    assert kept is not None
    assert kept.untyped_storage().nbytes() == ONE, "the whole batch is held"
    cache.put("a", 0, batch[1:])
    assert cache.held == 2 * ONE


def test_images_that_were_asked_for_long_ago_make_room() -> None:
    cache = EmbeddingCache(3 * ONE)
    for name in "abc":
        cache.put(name, 0, embedding())
    cache.get("a", 0)
    cache.put("d", 0, embedding())
    assert [cache.get(name, 0) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.held == 3 * ONE


def test_a_volume_that_does_not_fit_keeps_its_first_tiles() -> None:
    """It is read from front to back each time: the oldest is what is needed next."""
    cache = EmbeddingCache(3 * ONE)
    cache.put("old", 0, embedding())
    for tile in range(10):
        cache.put("new", tile, embedding(tile))
    assert [cache.get("new", tile) is not None for tile in range(10)] == [True] * 3 + [False] * 7
    assert cache.get("old", 0) is None
    assert cache.held == 3 * ONE


def test_memory_that_is_needed_elsewhere_is_given_back_for_good() -> None:
    cache = EmbeddingCache(4 * ONE)
    for tile in range(4):
        cache.put("a", tile, embedding())
    cache.give_back()
    assert cache.held == 0
    for tile in range(4):
        cache.put("a", tile, embedding())
    assert cache.held == 2 * ONE


def test_threads_keep_the_bound() -> None:
    cache = EmbeddingCache(5 * ONE)
    start = threading.Barrier(8)
    held: list[int] = []

    def work(name: int) -> None:
        start.wait()
        for tile in range(200):
            cache.put(name % 3, tile % 7, embedding(name))
            cache.get(name % 5, tile % 7)
            held.append(cache.held)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(held) <= 5 * ONE
    assert cache.held == sum(len(tiles) for tiles in cache._images.values()) * ONE


def test_only_what_is_missing_is_embedded() -> None:
    cache = EmbeddingCache(100 * ONE)
    embedded: list[list[float]] = []

    def embed(tiles: torch.Tensor) -> torch.Tensor:
        embedded.append([float(tile.mean()) for tile in tiles])
        return tiles.mean(dim=(1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)

    def decode(embeddings: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        return embeddings[:, 0, 0, 0]

    tiles = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    cache.put("a", 1, embedding(1))
    cache.put("a", 4, embedding(4))
    run = RememberedPasses(cache, "a", embed, decode)
    assert run(tiles[:3]).tolist() == [0, 1, 2]
    assert run(tiles[3:]).tolist() == [3, 4]
    assert embedded == [[0, 2], [3]]


def test_a_call_that_failed_is_repeated_with_the_same_tiles() -> None:
    cache = EmbeddingCache(100 * ONE)
    failures = [RuntimeError("out of memory"), None, None]

    def decode(embeddings: torch.Tensor, tiles: torch.Tensor) -> torch.Tensor:
        if (failure := failures.pop(0)) is not None:
            raise failure
        return embeddings[:, 0, 0, 0]

    def embed(tiles: torch.Tensor) -> torch.Tensor:
        return tiles[:, :1].expand(-1, 4, 2, 2)

    tiles = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    run = RememberedPasses(cache, "a", embed, decode)
    with pytest.raises(RuntimeError):
        run(tiles)
    assert run(tiles[:2]).tolist() == [0, 1]
    assert run(tiles[2:]).tolist() == [2, 3]


def volume(seed: int = 0, slices: int = 3) -> MedicalImage:
    voxels = np.random.default_rng(seed).random((48, 40, slices)).astype(np.float32)
    return MedicalImage(voxels, Grid(voxels.shape, np.diag([1.0, 1, 3, 1])))


def test_fingerprints_tell_images_apart() -> None:
    image = volume()
    changed = image.voxels.copy()
    changed[17, 5, 1] += 1e-6
    turned = replace(image.grid, affine=np.diag([1.0, -1, 3, 1]))
    others = [
        replace(image, voxels=changed),
        replace(image, voxels=image.voxels.view(np.int32)),
        replace(image, grid=turned),
        MedicalImage(image.voxels[..., 0], Grid((48, 40), np.eye(4))),
        MedicalImage(image.voxels.reshape(40, 48, 3), Grid((40, 48, 3), image.grid.affine)),
    ]
    names = {fingerprint(other) for other in others} | {fingerprint(image)}
    assert len(names) == 6
    same = replace(image, voxels=image.voxels.copy(), path=Path("elsewhere.nii"))
    assert fingerprint(same) == fingerprint(image)


def test_fingerprints_of_any_layout() -> None:
    image = volume()
    for voxels in (np.asfortranarray(image.voxels), np.repeat(image.voxels, 2, 0)[::2]):
        assert len(fingerprint(replace(image, voxels=voxels))) == 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(small_starter(tmp_path_factory.mktemp("bundle")))


class Counting:
    """A segmenter that keeps embeddings, and how many tiles its encoder saw."""

    def __init__(self, bundle: Bundle, limit: int = 10**9, **options: Any) -> None:
        self.cache = EmbeddingCache(limit)
        self.segmenter = Segmenter(
            bundle, device="cpu", batch_size=2, embeddings=self.cache, **options
        )
        self.tiles = 0
        self.watch(self.segmenter)

    def watch(self, segmenter: Segmenter) -> None:
        if not segmenter._fast:
            segmenter._network.encoder.register_forward_pre_hook(self._count)
        for fast in segmenter._fast.values():
            fast._encoder = self._counted(fast._encoder)

    def _count(self, module: Any, arguments: Any) -> None:
        self.tiles += len(arguments[0])

    def _counted(self, encoder: Any) -> Any:
        def embed(tiles: torch.Tensor, controller: Any) -> torch.Tensor:
            self.tiles += len(tiles)
            return encoder(tiles, controller)

        embed.fuse = encoder.fuse  # type: ignore[attr-defined]
        return embed

    def segment(self, image: MedicalImage, segmenter: Segmenter | None = None) -> np.ndarray:
        return (segmenter or self.segmenter).segment(image, NUCLEI)


@pytest.mark.parametrize(
    "options", [{}, {"precision": "bfloat16"}, {"fast": False, "precision": "float32"}]
)
def test_a_second_request_for_an_image_skips_the_encoder(
    bundle: Bundle, options: dict[str, Any]
) -> None:
    wanted = Segmenter(bundle, device="cpu", batch_size=2, **options).segment(volume(), NUCLEI)
    counting = Counting(bundle, **options)
    first = counting.segment(volume())
    tiles = counting.tiles
    assert tiles >= 3
    assert np.array_equal(first, wanted)
    assert np.array_equal(counting.segment(volume()), wanted)
    assert counting.tiles == tiles
    counting.segment(volume(seed=1))
    assert counting.tiles == 2 * tiles


@pytest.mark.parametrize(("least", "marked"), [(-1e6, True), (1e6, False)])
def test_what_holds_nothing_stays_empty_also_from_an_embedding(
    bundle: Bundle, least: float, marked: bool
) -> None:
    said = bundle.description.model_copy(update={"presence": {NUCLEI: least}})
    counting = Counting(replace(bundle, description=said))
    drawn = nuclei(0, 96, 96, 6).pixels
    image = MedicalImage(drawn, Grid(drawn.shape, np.eye(4)))
    for _ in range(2):
        assert counting.segment(image).any() == marked


def test_a_volume_larger_than_the_cache_is_reused_in_part(bundle: Bundle) -> None:
    counting = Counting(bundle, limit=2 * SIZE, precision="float32")
    wanted = counting.segment(volume(slices=5))
    tiles = counting.tiles
    assert counting.cache.held == 2 * SIZE
    assert np.array_equal(counting.segment(volume(slices=5)), wanted)
    assert counting.tiles == 2 * tiles - 2


def test_without_a_cache_nothing_is_kept(bundle: Bundle) -> None:
    assert Segmenter(bundle, device="cpu").embeddings is None


def test_another_version_is_another_embedding(bundle: Bundle, tmp_path: Path) -> None:
    """Its controller takes part in the encoder; the versions share the cache."""
    network = bundle.load_network()
    with torch.no_grad():
        for parameter in network.controllers[NUCLEI].parameters():
            parameter.mul_(1.5)
    backbone = replace(LITE_MEDSAM, input_size=TILE)
    modalities = list(bundle.modalities.values())
    save_bundle(tmp_path, network, modalities, name="other", backbone=backbone, training={})
    other = load_bundle(tmp_path)
    counting = Counting(bundle)
    counting.segment(volume())
    tiles = counting.tiles
    newer = counting.segmenter.with_bundle(other)
    assert newer.embeddings is counting.cache
    wanted = Segmenter(other, device="cpu", batch_size=2).segment(volume(), NUCLEI)
    assert np.array_equal(counting.segment(volume(), newer), wanted)
    assert counting.tiles == 2 * tiles
    # and back, as those that still run with the earlier one
    counting.segment(volume())
    counting.segment(volume(), newer)
    assert counting.tiles == 2 * tiles


def test_another_rule_of_intensities_is_another_embedding(bundle: Bundle) -> None:
    counting = Counting(bundle)
    counting.segment(volume())
    tiles = counting.tiles
    nuclei = bundle.modality(NUCLEI)
    changed: Modality = nuclei.model_copy(
        update={"intensity": nuclei.intensity.model_copy(update={"high": 42.0, "kind": "window"})}
    )
    description = bundle.description.model_copy(update={"modalities": [changed]})
    counting.segment(
        volume(), counting.segmenter.with_bundle(replace(bundle, description=description))
    )
    assert counting.tiles == 2 * tiles


def test_threads_get_their_own_images(bundle: Bundle) -> None:
    counting = Counting(bundle, limit=4 * SIZE, precision="float32")
    images = [volume(seed) for seed in range(4)]
    alone = Segmenter(bundle, device="cpu", batch_size=2, precision="float32")
    wanted = [alone.segment(image, NUCLEI) for image in images]
    found: dict[int, list[np.ndarray]] = {}

    def work(index: int) -> None:
        found[index] = [counting.segment(images[index]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, label_maps in found.items():
        assert all(np.array_equal(label_map, wanted[index]) for label_map in label_maps)


def test_when_memory_lacks_embeddings_go_first(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(bundle)
    wanted = counting.segment(volume())
    (network,) = counting.segmenter._fast.values()
    decode: Callable[..., Any] = network.decode
    failures = [RuntimeError("can't allocate memory")]

    def scarce(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return decode(*arguments)

    monkeypatch.setattr(network, "decode", scarce)
    limit = counting.cache.limit
    assert np.array_equal(counting.segment(volume()), wanted)
    assert counting.cache.limit == limit // 2


def test_the_classifier_looks_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[MedicalImage] = []

    def looking(self: Segmenter, image: MedicalImage) -> dict[str, float]:
        looked.append(image)
        return {NUCLEI: 1.0}

    monkeypatch.setattr(Segmenter, "_looked", looking)
    segmenter = Segmenter(bundle, device="cpu", embeddings=EmbeddingCache(10**6))
    for seed in (0, 1, 0, 1):
        assert segmenter._look(volume(seed)) == {NUCLEI: 1.0}
    assert len(looked) == 2
    forgetful = Segmenter(bundle, device="cpu")
    forgetful._look(volume())
    forgetful._look(volume())
    assert len(looked) == 4
