"""Intensities, scale and tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_medsam_app.errors import InputError
from esp_medsam_app.inference import preprocessing
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling, decide
from esp_medsam_app.modalities import Intensity, Tiles

TILE = 32
sides = st.integers(8, 150)
rules = st.tuples(st.integers(1, 3), st.integers(0, 2)).map(
    lambda pair: Tiles(least=pair[0], most=pair[0] + pair[1])
)


def tiling(height: int, width: int, rule: Tiles) -> Tiling:
    return Tiling(height, width, TILE, rule, counted_for=TILE)


@given(sides, sides, rules)
def test_tiles_cover_the_canvas_and_overlap(height: int, width: int, rule: Tiles) -> None:
    plan = tiling(height, width, rule)
    covered = np.zeros(plan.canvas, int)
    for top, left in plan.origins:
        assert top >= 0
        assert left >= 0
        covered[top : top + TILE, left : left + TILE] += 1
    assert covered.min() >= 1
    along = {left for _, left in plan.origins}
    assert rule.least <= len(along) or width < height
    assert len(along) <= rule.most


@settings(deadline=None)
@given(sides, sides, rules)
def test_what_is_cut_is_joined_again(height: int, width: int, rule: Tiles) -> None:
    """A smooth map survives scale, cut, join and scale back; so blending weighs to one."""
    plan = tiling(height, width, rule)
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(0, 2, width)[None, :]
    smooth = (rows + columns).expand(1, 1, height, width)
    canvas = plan.scale(smooth)[0]
    tiles = torch.stack([plan.cut(canvas, origin) for origin in plan.origins])
    assert tiles.shape == (len(plan.origins), 1, TILE, TILE)
    joined = plan.join(tiles)
    assert joined.shape == (1, height, width)
    # a pixel of the coarser of both grids, in units of the ramp
    step = 2 / min(min(plan.canvas), min(height, width))
    assert (joined - smooth[0]).abs().max() <= 2 * step


@settings(deadline=None)
@given(st.integers(8, 60), st.integers(8, 60), st.integers(0, 2**31))
def test_labels_come_back_where_they_were_painted(height: int, width: int, seed: int) -> None:
    """A block label, scaled to the canvas and back as logits, is off by its rim at most."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, height - 6), rng.integers(0, width - 6)
    bottom, right = rng.integers(top + 5, height), rng.integers(left + 5, width)
    labels = torch.zeros(1, height, width, dtype=torch.uint8)
    labels[0, top:bottom, left:right] = 1
    plan = Tiling(height, width, 64, Tiles())
    canvas = plan.scale_labels(labels)
    logits = torch.where(canvas > 0, 5.0, -5.0)
    found = decide(plan.join(plan.cut(logits, (0, 0)).unsqueeze(0)))
    wrong = (found != labels[0]).nonzero()
    for row, column in wrong.tolist():
        assert min(abs(row - top), abs(row - bottom + 1)) <= 1 or (
            min(abs(column - left), abs(column - right + 1)) <= 1
        )


@settings(deadline=None)
@given(st.integers(8, 3000), st.integers(8, 3000), rules, st.sampled_from([64, 112, 128]))
def test_a_smaller_input_covers_the_same(height: int, width: int, rule: Tiles, side: int) -> None:
    full, small = Tiling(height, width, 256, rule), Tiling(height, width, side, rule)
    ratio = side / 256
    for found, wanted in zip(small.canvas, full.canvas, strict=True):
        # rounded: the canvas, and the steps between its tiles
        assert abs(found - wanted * ratio) <= 1 + 0.5 * rule.most
    longest = max(height, width)
    if longest != height:
        return
    assert len({top for top, _ in small.origins}) == len({top for top, _ in full.origins})


@pytest.mark.parametrize(("height", "width"), [(7, 100), (100, 7), (1, 1)])
def test_too_small(height: int, width: int) -> None:
    with pytest.raises(InputError, match=f"{width} x {height} pixels are too small"):
        tiling(height, width, Tiles())


def test_window_in_hounsfield_units() -> None:
    rule = Intensity(kind="window", low=0, high=200)
    voxels = np.array([[[-1000, 0, 100, 200, 900]]], np.int16)
    unit = IntensityScale.of(voxels, rule).apply(voxels)
    np.testing.assert_allclose(unit[0, 0, 0], [0, 0, 0.5, 1, 1], atol=1e-6)
    assert unit.shape == (1, 3, 1, 5)


def test_window_leaves_8_bit_pictures_as_they_are() -> None:
    rule = Intensity(kind="window", low=0, high=200)
    voxels = np.array([[[10, 51, 204]]], np.uint8)
    np.testing.assert_allclose(
        IntensityScale.of(voxels, rule).apply(voxels)[0, 0, 0], [10 / 255, 0.2, 0.8], atol=1e-6
    )


def test_percentiles_ignore_outliers() -> None:
    rule = Intensity(kind="percentiles", low=1, high=99)
    voxels = np.linspace(0, 100, 10_000).reshape(1, 100, 100)
    voxels[0, 0, 0] = 1e6
    scale = IntensityScale.of(voxels, rule)
    assert 0 < scale.low < 2
    assert 98 < scale.high < 100


def test_percentiles_of_a_few_bright_voxels() -> None:
    """All percentiles are equal: the range is used, and the structure stays visible."""
    voxels = np.zeros((1, 100, 100))
    voxels[0, 0, 0] = 8
    scale = IntensityScale.of(voxels, Intensity(kind="percentiles", low=1, high=99))
    assert (scale.low, scale.high) == (0, 8)


def test_colour_keeps_its_channels() -> None:
    voxels = np.zeros((1, 4, 5, 3), np.uint8)
    voxels[..., 0] = 255
    unit = IntensityScale.of(voxels, Intensity()).apply(voxels)
    assert unit.shape == (1, 3, 4, 5)
    assert unit[0].mean(dim=(1, 2)).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("value", "message"), [(0.0, "have the value 0"), (7.0, "value 7"), (np.nan, "no numbers")]
)
def test_nothing_to_segment(value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        IntensityScale.of(np.full((3, 4, 5), value), Intensity())


def test_infinite_voxels() -> None:
    with pytest.raises(InputError, match="no numbers"):
        IntensityScale.of(np.array([[0.0, np.inf]]), Intensity())


def test_larger_logit_wins() -> None:
    logits = torch.tensor([[[-1.0, 2.0, 2.0, -3.0]], [[-2.0, 1.0, 3.0, 0.5]]])
    assert decide(logits).tolist() == [[0, 1, 2, 2]]


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["uint8", "int16", "uint16", "int32"]),
    st.tuples(st.floats(0, 49), st.floats(51, 100)),
)
def test_percentiles_of_counted_integers_are_those_of_sorted_ones(
    seed: int, dtype: str, wanted: tuple[float, float]
) -> None:
    random = np.random.default_rng(seed)
    least = 0 if dtype.startswith("u") else -300
    shape = tuple(random.integers(1, 12, 3))
    voxels = np.asfortranarray(random.integers(least, 255, shape)).astype(dtype)
    voxels.flat[0] = 254 if voxels.flat[-1] < 254 else 0
    if voxels.min() == voxels.max():
        return
    low, high = np.percentile(voxels.astype(np.float64), wanted)
    scale = IntensityScale.of(voxels, Intensity(kind="percentiles", low=wanted[0], high=wanted[1]))
    if low < high:
        assert (scale.low, scale.high) == pytest.approx((low, high), abs=1e-6)
    else:
        assert (scale.low, scale.high) == (voxels.min(), voxels.max())


def test_integers_of_any_range_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Intensity(kind="percentiles", low=1, high=99)
    voxels = np.random.default_rng(0).integers(-(10**6), 10**6, (30, 20, 10)).astype(np.int32)
    wanted = np.percentile(voxels, [1, 99])
    scale = IntensityScale.of(voxels, rule)
    assert (scale.low, scale.high) == pytest.approx(tuple(wanted), rel=1e-6)
    # in many parts
    monkeypatch.setattr(preprocessing, "_AT_ONCE", 7)
    small = (voxels // 100).astype(np.int16)
    scale = IntensityScale.of(small, rule)
    assert (scale.low, scale.high) == pytest.approx(tuple(np.percentile(small, [1, 99])))
