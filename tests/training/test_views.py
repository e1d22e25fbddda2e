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
from PIL import Image
from pydantic import ValidationError

from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.evaluation.pairs import CasePair, find_pairs
from esp_medsam_app.modalities import Augmentation, Modality, Tiles, catalogue
from esp_medsam_app.modalities.modality import AcquisitionChange
from esp_medsam_app.training.augmentation import Appearance, cut_view
from esp_medsam_app.training.augmentation.draw import Draw
from esp_medsam_app.training.augmentation.light import inside_body, other_window
from esp_medsam_app.training.sizes import SizeSchedule, SizeStage
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
    cache = prepare_slices(tmp_path / "cache", pairs, modality, tile=TILE)
    return TrainingViews(cache, modality, tile=TILE, **({"seed": 0} | options))  # type: ignore[arg-type]


def overlap(image: torch.Tensor, labels: torch.Tensor) -> float:
    bright = image[0] > 0.5
    return float(2 * (bright & (labels > 0)).sum() / (bright.sum() + (labels > 0).sum()))


def test_store_keeps_every_slice_of_a_volume(
    volume_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    store = prepare_slices(tmp_path / "s", volume_pairs, disc, tile=TILE)
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
        store = prepare_slices(
            tmp_path / "s", pairs, disc, tile=TILE, report=lambda done, _: told.append(done)
        )
        assert len(store) == len(pairs)
    assert told == [1, 2, 3, 4, 1, 2, 3]


def test_store_stays_below_its_limit(
    volume_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    limit = 4 * 2 * 40 * 48
    store = prepare_slices(tmp_path / "s", volume_pairs, disc, tile=TILE, limit_bytes=limit)
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
    other = prepare_slices(tmp_path / "other", disc_pairs, disc, tile=TILE)
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


def test_a_view_has_the_size_that_is_asked_for(
    disc_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    still = disc.model_copy(update={"augmentation": STILL})
    views = views_of(tmp_path, disc_pairs, still)
    for size in (32, 64, 96):
        image, labels = views.cut(0, size)
        assert image.shape == (3, size, size)
        assert labels.shape == (size, size)
        assert overlap(image, labels) > 0.9


def test_large_sites_do_not_drown_small_ones(disc: Modality, tmp_path: Path) -> None:
    """Nine cases of one site and one of another: three in four views, not nine in ten."""
    pairs = []
    for site, count in (("large", 9), ("small", 1)):
        folder = tmp_path / site / "train"
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True)
        for index in range(count):
            marked = np.zeros((16, 16), np.uint8)
            marked[4:9, 4:9] = 1
            Image.fromarray(100 * marked).save(folder / "images" / f"{site}{index}.png")
            Image.fromarray(marked).save(folder / "labels" / f"{site}{index}.png")
        pairs += find_pairs([folder])
    views = views_of(tmp_path, pairs, disc)
    assert {site: len(cases) for site, cases in views.cache.sites.items()} == {
        "large": 9,
        "small": 1,
    }
    small = views.cache.sites["small"][0]
    share = np.mean([views.case(index) == small for index in range(400)])
    assert 0.19 < share < 0.31


def test_only_labelled_slices_where_that_is_asked_for(
    volume_pairs: list[CasePair], disc: Modality, tmp_path: Path
) -> None:
    views = views_of(tmp_path, volume_pairs, disc, labelled=1.0)
    rng = np.random.default_rng(0)
    assert not {views._slice(index, rng) for index in range(40)} & set(views.cache.empty)
    some = views_of(tmp_path, volume_pairs, disc, labelled=0.5)
    assert {some._slice(index, rng) for index in range(40)} & set(some.cache.empty)


def cut(image: torch.Tensor, modality: Modality, seed: int) -> torch.Tensor:
    view, _ = cut_view(
        image,
        (image[0] > 0.5).to(torch.uint8),
        extents=(image.shape[-2], image.shape[-1]),
        tile=image.shape[-1],
        modality=modality,
        rng=np.random.default_rng(seed),
    )
    return view


def test_left_right_flip_mirrors_columns(disc: Modality) -> None:
    rule = Augmentation(flips=("left_right",), rotation=0, scale=0, intensity=0)
    image = torch.zeros(3, 8, 8)
    image[:, 2, 0] = 1
    modality = disc.model_copy(update={"augmentation": rule})
    seen = {
        tuple(place)
        for seed in range(20)
        for place in (cut(image, modality, seed)[0] > 0.9).nonzero().tolist()
    }
    assert seen == {(2, 0), (2, 7)}


@pytest.mark.parametrize(
    ("flips", "quarter_turns", "orientations"),
    [(("left_right", "up_down"), True, 8), (("left_right",), False, 2), ((), True, 4)],
)
def test_all_orientations_occur(
    disc: Modality, flips: tuple[str, ...], quarter_turns: bool, orientations: int
) -> None:
    rule = Augmentation(
        flips=flips,  # type: ignore[arg-type]
        quarter_turns=quarter_turns,
        rotation=0,
        scale=0,
        intensity=0,
    )
    image = torch.arange(64, dtype=torch.float32).view(1, 8, 8).expand(3, 8, 8) / 64
    modality = disc.model_copy(update={"augmentation": rule})
    seen = {tuple(cut(image, modality, seed)[0].flatten().tolist()) for seed in range(80)}
    assert len(seen) == orientations


def test_a_mirror_swaps_paired_labels() -> None:
    """The label on the left of the image stays the one that is on the left."""
    modality = Modality(
        name="pair",
        title="",
        description="",
        dimension=2,
        labels={"kidney_left": 1, "kidney_right": 2, "liver": 3},
        paired_labels=(("kidney_left", "kidney_right"),),
        augmentation=Augmentation(flips=("left_right",), rotation=0, scale=0, intensity=0),
    )
    labels = torch.zeros(8, 8, dtype=torch.uint8)
    labels[2, 1], labels[2, 6], labels[5, 0] = 1, 2, 3
    mirrored = 0
    for seed in range(20):
        _, seen = cut_view(
            torch.zeros(3, 8, 8),
            labels,
            extents=(8, 8),
            tile=8,
            modality=modality,
            rng=np.random.default_rng(seed),
        )
        assert (int(seen[2, 1]), int(seen[2, 6])) == (1, 2)
        mirrored += int(seen[5, 7] == 3)
    assert 0 < mirrored < 20


@settings(max_examples=15, deadline=None)
@given(
    modality=st.sampled_from(sorted(catalogue().values(), key=lambda m: m.name)),
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
)
def test_every_catalogue_rule_gives_images_in_range(
    modality: Modality, seed: int, size: tuple[int, int]
) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    view, truth = cut_view(
        image,
        torch.ones(size, dtype=torch.uint8),
        extents=size,
        tile=TILE,
        modality=modality,
        rng=np.random.default_rng(seed),
    )
    images, labels = Appearance(modality.augmentation)(view[None], truth[None], seed)
    assert images.shape == (1, 3, TILE, TILE)
    assert labels.shape == (1, TILE, TILE)
    assert torch.isfinite(images).all()
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    swapped = {2} if modality.paired_labels else set()
    assert set(labels.unique().tolist()) <= {0, 1} | swapped


@pytest.mark.parametrize("change", get_args(AcquisitionChange))
def test_every_acquisition_change_happens_to_some_images_alone(change: AcquisitionChange) -> None:
    appearance = Appearance(Augmentation(intensity=0, acquisition=(change,)))
    images = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)).sqrt()
    labels = torch.ones(40, 64, 64, dtype=torch.uint8)
    seen, truth = appearance(images, labels, 0)
    assert torch.isfinite(seen).all()
    different = (seen != images).flatten(1).any(dim=1)
    assert 0 < different.sum() < 40
    assert torch.equal(truth, labels) == (change not in {"frame", "panels", "cutout"})
    again, _ = appearance(images, labels, 0)
    assert torch.equal(again, seen)
    other, _ = appearance(images, labels, 1)
    assert not torch.equal(other, seen)


def test_grey_images_stay_grey(disc: Modality) -> None:
    """Text apart, which is coloured on real devices too."""
    for modality in catalogue().values():
        rule = modality.augmentation
        if "colour" in rule.acquisition:
            continue
        kinds = tuple(kind for kind in rule.acquisition if kind != "text")
        images = torch.rand(24, 1, 64, 64).expand(-1, 3, -1, -1)
        labels = torch.zeros(24, 64, 64, dtype=torch.uint8)
        seen, _ = Appearance(rule.model_copy(update={"acquisition": kinds}))(images, labels, 0)
        assert float((seen - seen[:, :1]).abs().max()) < 1e-5, modality.name


def test_what_is_hidden_is_not_labelled() -> None:
    appearance = Appearance(Augmentation(intensity=0, acquisition=("frame",)))
    images = torch.full((40, 3, 64, 64), 0.5)
    seen, labels = appearance(images, torch.ones(40, 64, 64, dtype=torch.uint8), 0)
    hidden = (seen != images).any(dim=1)
    assert hidden.any()
    assert torch.equal(labels == 0, hidden)


def test_sizes_follow_their_stages() -> None:
    stages = (SizeStage(until=0.5, sizes=(96, 112)), SizeStage(until=1, sizes=(224, 256)))
    schedule = SizeSchedule(stages, batches=40, seed=3)
    sizes = [schedule.size(number) for number in range(40)]
    assert set(sizes[:20]) == {96, 112}
    assert set(sizes[20:]) == {224, 256}
    assert sizes == [SizeSchedule(stages, 40, 3).size(number) for number in range(40)]
    assert sizes != [SizeSchedule(stages, 40, 4).size(number) for number in range(40)]


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(ValidationError, match="100 is not a multiple of 8"):
        SizeStage(until=1, sizes=(100,))


def test_a_wider_window_lifts_the_body_alone() -> None:
    images = torch.zeros(20, 3, 64, 64)
    images[:, :, 16:48, 16:48] = 0.8
    images[:, :, 30:34, 30:34] = 0.0  # a dark part inside
    body = inside_body(images)
    assert body[:, 0, 32, 32].all()
    assert not body[:, 0, :12].any()
    seen = other_window(images, Draw(0, torch.device("cpu"))).clamp(0, 1)
    assert (seen[:, 0, 0, 0] == 0).all()
    assert (seen[:, 0, 32, 32] > 0.1).any()
