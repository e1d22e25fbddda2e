"""Slices on disk and the views that are cut from them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_medsam_app.evaluation.pairs import CasePair, find_pairs
from esp_medsam_app.modalities import Augmentation, Modality, Tiles, catalogue
from esp_medsam_app.modalities.modality import AcquisitionChange
from esp_medsam_app.training.augmentation import IMAGE, LABEL, augmentation
from esp_medsam_app.training.canvases import CanvasStore
from esp_medsam_app.training.views import TrainingViews

TILE = 64
STILL = Augmentation(rotation=0, scale=0, intensity=0)


@pytest.fixture
def volume_pairs(tmp_path: Path) -> list[CasePair]:
    """A volume of ten slices, five of which hold a bright block."""
    voxels = np.random.default_rng(0).normal(50, 5, (40, 48, 10)).astype(np.float32)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[10:20, 12:30, 3:8] = 1
    voxels[labels > 0] += 100
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for part, array in (("images", voxels), ("labels", labels)):
        (tmp_path / "volumes" / part).mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "volumes" / part / "v.nii.gz")
    return find_pairs([tmp_path / "volumes"])


def views_of(
    tmp_path: Path, pairs: list[CasePair], modality: Modality, **options: object
) -> TrainingViews:
    store = CanvasStore.prepare(tmp_path / "store", pairs, modality, tile=TILE)
    return TrainingViews(store, modality, tile=TILE, **({"seed": 0} | options))  # type: ignore[arg-type]


def overlap(image: torch.Tensor, labels: torch.Tensor) -> float:
    bright = image[0] > 0.5
    return float(2 * (bright & (labels > 0)).sum() / (bright.sum() + (labels > 0).sum()))


def test_store_keeps_every_slice_of_a_volume(
    volume_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    store = CanvasStore.prepare(tmp_path / "s", volume_pairs, disc, tile=TILE)
    assert len(store) == 10
    assert [len(part) for part in store.by_case[0]] == [5, 5]
    for number in range(10):
        image, labels = store.read(number)
        assert image.shape == (3, 48, 40)
        assert bool(labels.any()) == (number not in store.empty)
        if labels.any():
            assert overlap(image, labels) == 1


def test_store_is_made_once_and_again_for_other_cases(
    disc_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    told: list[int] = []
    for pairs in (disc_pairs, disc_pairs, disc_pairs[1:]):
        store = CanvasStore.prepare(
            tmp_path / "s", pairs, disc, tile=TILE, report=lambda done, _: told.append(done)
        )
        assert len(store) == len(pairs)
    assert told == [1, 2, 3, 4, 1, 2, 3]


def test_store_stays_below_its_limit(
    volume_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    limit = 4 * 2 * 40 * 48
    store = CanvasStore.prepare(tmp_path / "s", volume_pairs, disc, tile=TILE, limit_bytes=limit)
    assert len(store) == 4
    assert (tmp_path / "s" / "pixels.bin").stat().st_size <= limit


def test_image_and_label_move_together(
    disc_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    rule = Augmentation(
        flips=("left_right", "up_down"), quarter_turns=True, rotation=30, scale=0.3, intensity=0
    )
    views = views_of(tmp_path, disc_pairs, disc.model_copy(update={"augmentation": rule}))
    for index in range(10):
        assert overlap(*views[index]) > 0.9
    assert not torch.equal(views[0][0], views[4][0])


def test_tiles_are_cut_from_the_enlarged_slice(
    disc_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    tiled = disc.model_copy(update={"tiles": Tiles(least=3, most=3), "augmentation": STILL})
    for index in range(6):
        image, labels = views_of(tmp_path, disc_pairs, tiled)[index]
        assert image.shape == (3, TILE, TILE)
        if labels.sum() > 200:
            assert overlap(image, labels) > 0.85


def test_a_view_is_a_function_of_seed_and_number(
    disc_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    views = views_of(tmp_path, disc_pairs, disc)
    later = [views[index][0] for index in (5, 2, 0)]
    again = views_of(tmp_path, disc_pairs, disc)
    for index, image in zip((5, 2, 0), later, strict=True):
        assert torch.equal(again[index][0], image)
    assert not torch.equal(views_of(tmp_path, disc_pairs, disc, seed=1)[0][0], views[0][0])


def test_each_case_gives_as_many_views(
    disc_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    views = views_of(tmp_path, disc_pairs, disc)
    rng = np.random.default_rng(0)
    assert sorted(views._slice(index, rng) for index in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_absent_views_show_nothing_of_the_structure(
    disc_pairs: list[CasePair], volume_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    still = disc.model_copy(update={"augmentation": STILL})
    other = CanvasStore.prepare(tmp_path / "other", disc_pairs, disc, tile=TILE)
    views = views_of(tmp_path, volume_pairs, still, absent=1.0, foreign=[other])
    seen = [views[index] for index in range(20)]
    for image, labels in seen:
        assert not labels.any()
        assert image.shape == (3, TILE, TILE)
    # slices of the volume and pieces of it are dark; discs of the other modality are bright
    assert any((image > 0.5).float().mean() > 0.05 for image, _ in seen)
    assert any((image > 0.5).float().mean() < 0.01 for image, _ in seen)
    present = views_of(tmp_path, volume_pairs, still, absent=0.0)
    assert any(present[index][1].any() for index in range(6))


def test_left_right_flip_mirrors_columns() -> None:
    rule = Augmentation(flips=("left_right",), rotation=0, scale=0, intensity=0)
    transform = augmentation(rule, 8)
    transform.set_random_state(0)
    image = torch.zeros(3, 8, 8)
    image[:, 2, 0] = 1
    seen = set()
    for _ in range(40):
        out = torch.as_tensor(transform({IMAGE: image, LABEL: image[:1]})[IMAGE])
        if out.sum() > 2.5:
            seen |= {tuple(place) for place in (out[0] > 0.9).nonzero().tolist()}
    assert {(2, 0), (2, 7)} <= seen


@settings(max_examples=15, deadline=None)
@given(
    modality=st.sampled_from(sorted(catalogue().values(), key=lambda m: m.name)),
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
)
def test_every_catalogue_rule_gives_images_in_range(
    modality: Modality, seed: int, size: tuple[int, int]
) -> None:
    transform = augmentation(modality.augmentation, TILE)
    transform.set_random_state(seed)
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    view = transform({IMAGE: image, LABEL: torch.ones(1, *size)})
    assert view[IMAGE].shape == (3, TILE, TILE)
    assert view[LABEL].shape == (1, TILE, TILE)
    assert torch.isfinite(torch.as_tensor(view[IMAGE])).all()
    assert set(torch.as_tensor(view[LABEL]).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("change", get_args(AcquisitionChange))
def test_every_acquisition_change_happens(change: AcquisitionChange) -> None:
    """Behind all other transforms, as images have gone through those."""
    rules = [
        Augmentation(rotation=10, scale=0.1, intensity=0.5, acquisition=changes)
        for changes in ((), (change,))
    ]
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0)).sqrt()
    different = 0
    for seed in range(30):
        seen = []
        for rule in rules:
            transform = augmentation(rule, TILE)
            transform.set_random_state(seed)
            view = torch.as_tensor(transform({IMAGE: image, LABEL: torch.ones(1, 70, 90)})[IMAGE])
            assert torch.isfinite(view).all()
            seen.append(view)
        different += not torch.equal(*seen)
    assert different > 0
