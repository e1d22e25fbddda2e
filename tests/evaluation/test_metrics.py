"""Scores against computations that share no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from esp_medsam_app.evaluation.metrics import bootstrap_interval, score_labels, score_mask


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> NDArray[np.uint8]:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*side) for side in sides)] = 1
    return mask


def surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~binary_erosion(mask, generate_binary_structure(mask.ndim, 1))


def hausdorff_95(
    first: NDArray[np.bool_], second: NDArray[np.bool_], spacing: tuple[float, ...]
) -> float:
    """The larger of both directed 95th percentiles, by distance maps."""
    edges = surface(first), surface(second)
    maps = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return max(np.percentile(maps[1][edges[0]], 95), np.percentile(maps[0][edges[1]], 95))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.booleans())
def test_random_masks(seed: int, volume: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (14, 12, 9) if volume else (24, 19)
    spacing = tuple(float(value) for value in rng.uniform(0.4, 3, len(shape)))
    masks = [np.zeros(shape, bool) for _ in range(2)]
    for mask in masks:
        # up to the image's edge, which counts as surface
        low = [int(rng.integers(0, extent - 5)) for extent in shape]
        high = [int(rng.integers(l + 3, e + 1)) for l, e in zip(low, shape, strict=True)]  # noqa: E741
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        mask &= rng.random(shape) < 0.9
    reference, prediction = masks
    score = score_mask(reference, prediction, spacing)
    overlap = (reference & prediction).sum()
    assert math.isclose(
        score.dice, 2 * overlap / (reference.sum() + prediction.sum()), abs_tol=1e-12
    )
    assert math.isclose(score.iou, overlap / (reference | prediction).sum(), abs_tol=1e-12)
    assert score.hd95 is not None
    assert math.isclose(
        score.hd95, hausdorff_95(reference, prediction, spacing), rel_tol=1e-5, abs_tol=1e-5
    )


def test_spacing_goes_with_its_axis() -> None:
    """A box moved by two voxels along one axis is two spacings of that axis away."""
    reference = box((12, 12, 12), (3, 7), (3, 7), (3, 7))
    spacing = (0.5, 1.0, 4.0)
    for axis in range(3):
        moved = np.roll(reference, 2, axis)
        assert score_mask(reference, moved, spacing).hd95 == pytest.approx(2 * spacing[axis])


def test_overlap_as_itk_counts_it() -> None:
    rng = np.random.default_rng(5)
    reference, prediction = (rng.random((2, 9, 8, 7)) < 0.4).astype(np.uint8)
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(sitk.GetImageFromArray(reference), sitk.GetImageFromArray(prediction))
    score = score_mask(reference, prediction, (1, 1, 1))
    assert score.dice == pytest.approx(filter_.GetDiceCoefficient(1))
    assert score.iou == pytest.approx(filter_.GetJaccardCoefficient(1))


def test_equal_masks() -> None:
    mask = box((9, 9), (2, 6), (3, 8))
    score = score_mask(mask, mask * 255, (1, 1))
    assert (score.dice, score.iou, score.hd95) == (1, 1, 0)


def test_absent_and_missed() -> None:
    mask, nothing = box((9, 9), (2, 6), (3, 8)), np.zeros((9, 9), np.uint8)
    absent, missed, invented = (
        score_mask(nothing, nothing, (1, 1)),
        score_mask(mask, nothing, (1, 1)),
        score_mask(nothing, mask, (1, 1)),
    )
    assert (absent.dice, absent.iou, absent.hd95, absent.absent) == (1, 1, None, True)
    for score in (missed, invented):
        assert (score.dice, score.iou, score.hd95, score.missed) == (0, 0, None, True)


def test_a_volume_of_one_slice_is_scored_as_its_slice() -> None:
    reference, prediction = box((20, 20), (3, 12), (3, 12)), box((20, 20), (5, 15), (3, 12))
    flat = score_mask(reference, prediction, (1, 2))
    thick = score_mask(reference[..., np.newaxis], prediction[..., np.newaxis], (1, 2, 7))
    assert thick == flat


def test_each_label_by_its_own_value() -> None:
    reference, prediction = np.zeros((2, 10, 10), np.uint8)
    reference[:5], reference[5:] = 1, 2
    prediction[:5] = 1
    scores = score_labels(reference, prediction, {"a": 1, "b": 2}, (1, 1))
    assert scores["a"].dice == 1
    assert scores["b"].missed


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="masks of"):
        score_mask(np.zeros((3, 3)), np.zeros((3, 4)), (1, 1))


def test_bootstrap_covers_the_mean() -> None:
    """Of 200 samples of a known mean, about 95 % have it inside their interval."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        interval = bootstrap_interval(rng.normal(0.8, 0.1, 40), resamples=500)
        assert interval is not None
        hits += interval[0] <= 0.8 <= interval[1]
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_of_few_values() -> None:
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.1, 0.9]) == bootstrap_interval([0.1, 0.9])
