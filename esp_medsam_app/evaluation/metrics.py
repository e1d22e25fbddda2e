"""Dice, IoU and the 95th percentile of the Hausdorff distance, and intervals around their means.

Conventions for a label in one case:

| reference | prediction | Dice | IoU | HD95 |
| --- | --- | --- | --- | --- |
| present | present | overlap | overlap | distance |
| absent | absent | 1 | 1 | undefined ("absent") |
| one of the two only || 0 | 0 | undefined ("missed") |

An undefined distance is `None` and left out of means: no number stands for an infinite distance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance

RESAMPLES = 10_000
SEED = 0
# draws held in memory at once: about 40 MB
_DRAWS_AT_ONCE = 5_000_000


@dataclass(frozen=True)
class LabelScore:
    """One label of one case. `hd95` is in the unit of the spacing given, `None` where undefined."""

    dice: float
    iou: float
    hd95: float | None
    reference_voxels: int
    predicted_voxels: int

    @property
    def absent(self) -> bool:
        """Neither the reference nor the prediction holds the label."""
        return self.reference_voxels == 0 and self.predicted_voxels == 0

    @property
    def missed(self) -> bool:
        """Only one of reference and prediction holds the label."""
        return (self.reference_voxels == 0) != (self.predicted_voxels == 0)


def score_mask(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]
) -> LabelScore:
    """Compare two masks of equal shape (2D or 3D; non-zero is foreground).

    `spacing` is the distance between neighbours along each axis, in mm or pixels. HD95 is the
    larger of the two directed 95th percentiles, over voxels of the mask's surface: those with a
    face towards the outside. Raises ValueError when shapes or spacing do not fit.
    """
    if reference.shape != prediction.shape or len(spacing) != reference.ndim:
        raise ValueError(
            f"masks of {reference.shape} and {prediction.shape} with {len(spacing)} spacings"
        )
    reference, prediction = reference != 0, prediction != 0
    reference_voxels = int(np.count_nonzero(reference))
    predicted_voxels = int(np.count_nonzero(prediction))
    if not reference_voxels and not predicted_voxels:
        return LabelScore(1.0, 1.0, None, 0, 0)
    if not reference_voxels or not predicted_voxels:
        return LabelScore(0.0, 0.0, None, reference_voxels, predicted_voxels)
    overlap = int(np.count_nonzero(reference & prediction))
    both = reference_voxels + predicted_voxels
    return LabelScore(
        dice=2 * overlap / both,
        iou=overlap / (both - overlap),
        hd95=_hausdorff_95(reference, prediction, spacing),
        reference_voxels=reference_voxels,
        predicted_voxels=predicted_voxels,
    )


def mask_dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Dice of two boolean masks of equal shape, as `score_mask` has it, without its distances.

    Those take most of the time on volumes.
    """
    both = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(reference & prediction) / both if both else 1.0


def mean_dice(reference: np.ndarray, prediction: np.ndarray, labels: Iterable[int]) -> float:
    """Mean over label values of the Dice of two label maps of equal shape."""
    return float(np.mean([mask_dice(reference == v, prediction == v) for v in labels]))


def score_labels(
    reference: np.ndarray,
    prediction: np.ndarray,
    labels: Mapping[str, int],
    spacing: Sequence[float],
) -> dict[str, LabelScore]:
    """`score_mask` for every name in `labels`, on two label maps of equal shape."""
    return {
        name: score_mask(reference == value, prediction == value, spacing)
        for name, value in labels.items()
    }


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a mean (Efron and Tibshirani 1993, ch. 13).

    Cases are drawn with replacement, as many as there are; the interval lies between the
    percentiles of the resampled means. Same values and seed, same interval. `None` without
    values; a single value gives an interval of no width, which says nothing about the spread.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return None
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // sample.size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        means[start : start + count] = sample[
            rng.integers(0, sample.size, size=(count, sample.size))
        ].mean(axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _hausdorff_95(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> float:
    """HD95 of two masks that both hold something."""
    # what lies outside both masks changes nothing and costs most of the time
    box = _bounding_box(reference | prediction)
    truth = torch.from_numpy(np.ascontiguousarray(reference[box]))[None, None]
    guess = torch.from_numpy(np.ascontiguousarray(prediction[box]))[None, None]
    # in a volume of one slice every voxel faces the outside; its surface is its outline
    flat = tuple(axis for axis, extent in enumerate(reference.shape) if extent == 1)
    if len(flat) < reference.ndim:
        truth, guess = (t.squeeze(tuple(axis + 2 for axis in flat)) for t in (truth, guess))
        spacing = [s for axis, s in enumerate(spacing) if axis not in flat]
    with warnings.catch_warnings():
        # MONAI about a call within MONAI
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy")
        distance = compute_hausdorff_distance(
            y_pred=guess, y=truth, include_background=True, percentile=95, spacing=list(spacing)
        )
    return float(distance.item())


def _bounding_box(mask: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """The smallest box around a non-empty mask, with a margin where the array has room for it."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        box.append(
            slice(max(0, int(hit[0]) - margin), min(mask.shape[axis], int(hit[-1]) + 1 + margin))
        )
    return tuple(box)
