"""The Segmenter around a small network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.errors import InputError, OutOfMemoryError, UnknownNameError
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.modalities import Modality, Tiles
from esp_medsam_app.networks import EspMedSam, Segmentation
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights import Bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM

PLAIN = Modality(name="plain", title="", description="", dimension=3, labels={"a": 1})
TILED = Modality(
    name="tiled", title="", description="", dimension=2, labels={"a": 1, "b": 2},
    tiles=Tiles(least=2, most=3),
)  # fmt: skip
TILE = 64


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    written = save_bundle(
        tmp_path_factory.mktemp("bundle"),
        new_network(LITE_MEDSAM, [PLAIN, TILED]),
        [PLAIN, TILED],
        name="test",
        backbone=LITE_MEDSAM,
        training={},
    )
    return replace(written, description=written.description.model_copy(update={"input_size": TILE}))


@pytest.fixture(scope="module")
def segmenter(bundle: Bundle) -> Segmenter:
    return Segmenter(bundle, device="cpu", batch_size=2)


def image_of(voxels: np.ndarray, path: Path | None = None) -> MedicalImage:
    shape = voxels.shape[:2] if voxels.ndim == 3 and voxels.shape[-1] == 3 else voxels.shape
    grid = Grid(shape=shape, affine=np.eye(4), has_patient_space=len(shape) == 3, nifti_header=None)
    return MedicalImage(voxels=voxels, grid=grid, path=path, dicom_modality=None)


def bright_as_label(network: EspMedSam) -> Callable[..., Segmentation]:
    """In place of the network: label 1 where the input is above one half."""

    def run(tiles: torch.Tensor, modality: str) -> Segmentation:
        queries = network.queries[modality].decoded
        masks = torch.full((len(tiles), queries, *tiles.shape[-2:]), -9.0)
        masks[:, 0] = tiles[:, 0].float() * 10 - 5
        return Segmentation(masks, masks[:, :1, ::8, ::8], masks)

    return run


@pytest.fixture
def thresholding(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.setattr(segmenter, "_pass", bright_as_label(segmenter._network))
    return segmenter


def blocks(shape: tuple[int, ...]) -> np.ndarray:
    voxels = np.zeros(shape, np.float32)
    middle = tuple(slice(extent // 4, extent // 2) for extent in shape[:2])
    voxels[middle] = 100
    return voxels


@pytest.mark.parametrize(
    ("modality", "shape"),
    [("plain", (40, 56, 5)), ("plain", (64, 64)), ("tiled", (200, 90)), ("tiled", (90, 200, 3))],
)
def test_label_map_lies_on_the_structure(
    thresholding: Segmenter, modality: str, shape: tuple[int, ...]
) -> None:
    """Through slicing, scaling, tiling and back, a bright block is found where it is."""
    voxels = blocks(shape)
    image = image_of(voxels)
    labels = thresholding.segment(image, modality)
    assert labels.dtype == np.uint8
    assert labels.shape == image.grid.shape
    truth = voxels[..., 0] > 0 if image.is_rgb else voxels > 0
    overlap = 2 * (labels[truth] == 1).sum() / ((labels == 1).sum() + truth.sum())
    assert overlap > 0.9


@pytest.mark.parametrize(("least", "marked"), [(-1e6, True), (1e6, False)])
def test_what_holds_nothing_stays_empty(
    thresholding: Segmenter, monkeypatch: pytest.MonkeyPatch, least: float, marked: bool
) -> None:
    said = thresholding.bundle.description.model_copy(update={"presence": {"plain": least}})
    monkeypatch.setattr(thresholding, "bundle", replace(thresholding.bundle, description=said))
    assert thresholding.segment(image_of(blocks((40, 40, 3))), "plain").any() == marked
    assert thresholding.segment(image_of(blocks((90, 90))), "tiled").any()


def test_every_slice_is_told(thresholding: Segmenter) -> None:
    told: list[tuple[int, int]] = []
    thresholding.segment(
        image_of(blocks((40, 40, 5))), "plain", on_slice=lambda *step: told.append(step)
    )
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


def test_real_network_gives_labels_of_its_modality(segmenter: Segmenter) -> None:
    rng = np.random.default_rng(0)
    labels = segmenter.segment(image_of(rng.random((90, 70))), "tiled")
    assert labels.shape == (90, 70)
    assert set(np.unique(labels)) <= {0, 1, 2}


def test_batch_size_does_not_matter(bundle: Bundle) -> None:
    """Rounding may move a pixel whose logit is next to nothing, no more."""
    image = image_of(np.random.default_rng(1).random((40, 48, 5)))
    one, many = (
        Segmenter(bundle, device="cpu", batch_size=size).segment(image, "plain") for size in (1, 4)
    )
    assert (one != many).mean() < 0.001


def failing_above(limit: int, run: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def wrapped(tiles: torch.Tensor, modality: str) -> Any:
        calls.append(len(tiles))
        if len(tiles) > limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return run(tiles, modality)

    return wrapped


def test_batch_is_halved_when_memory_is_short(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter(bundle, device="cpu", batch_size=8)
    image = image_of(blocks((40, 40, 9)))
    monkeypatch.setattr(segmenter, "_pass", bright_as_label(segmenter._network))
    plenty = segmenter.segment(image, "plain")
    calls: list[int] = []
    monkeypatch.setattr(segmenter, "_pass", failing_above(2, segmenter._pass, calls))
    assert np.array_equal(segmenter.segment(image, "plain"), plenty)
    assert calls == [8, 4, 2, 2, 2, 2, 1]


def test_memory_for_not_even_one_tile(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter, "_pass", failing_above(0, segmenter._pass, []))
    with pytest.raises(OutOfMemoryError, match=r"case\.nii: cpu has too little memory"):
        segmenter.segment(image_of(blocks((40, 40)), Path("case.nii")), "plain")


def test_other_errors_are_not_taken_for_memory(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(tiles: torch.Tensor, modality: str) -> Segmentation:
        raise RuntimeError("a defect")

    monkeypatch.setattr(segmenter, "_pass", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        segmenter.segment(image_of(blocks((40, 40))), "plain")


def test_errors_name_the_file(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=r"empty\.png: all voxels have the value 0"):
        segmenter.segment(image_of(np.zeros((40, 40)), Path("empty.png")), "plain")
    with pytest.raises(InputError, match=r"dot\.png: slices of 1 x 1 pixels"):
        # one pixel has one value: the size is what is wrong with it
        segmenter.segment(image_of(np.zeros((1, 1)), Path("dot.png")), "plain")


def test_unknown_modality(segmenter: Segmenter) -> None:
    with pytest.raises(UnknownNameError, match="Available: plain, tiled"):
        segmenter.segment(image_of(blocks((40, 40))), "ct_spleen")


def test_unknown_device(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        Segmenter(bundle, device="abacus")


def test_threads_share_it(thresholding: Segmenter) -> None:
    images = [image_of(blocks((40, 40 + 8 * index, 3))) for index in range(4)]
    alone = [thresholding.segment(image, "plain") for image in images]
    together: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        together[index] = thresholding.segment(images[index], "plain")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[index], alone[index]) for index in range(4))
