"""The limit that is fitted: empties what is empty, and costs no Dice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_medsam_app.evaluation.presence import TOLERANCE, SeenTile, calibrate


def tile(case: int | None, strongest: float, there: int, found: int, overlap: int) -> SeenTile:
    return SeenTile(
        case, strongest, found / 1000, *(np.array([n]) for n in (overlap, found, there))
    )


def holding(strongest: float, case: int = 0) -> SeenTile:
    return tile(case, strongest, 100, 90, 85)


def empty(strongest: float, case: int | None = 0, found: int = 40) -> SeenTile:
    return tile(case, strongest, 0, found, 0)


def test_between_what_is_there_and_what_is_not() -> None:
    found = calibrate([holding(2), holding(3), empty(-1), empty(0.5)], most_marked=0.03)
    assert found.least == pytest.approx(0.5, abs=1e-3)
    assert found.marked == (1.0, 0.0)
    assert found.lost == 0
    assert found.dice == pytest.approx((2 * 170 / 460, 2 * 170 / 380))


def test_the_lowest_that_is_enough() -> None:
    there = [holding(5) for _ in range(100)]
    many = [empty(n / 100, found=2) for n in range(100)]
    found = calibrate([*there, *many], most_marked=0.1)
    assert found.least == pytest.approx(0.89, abs=1e-3)
    assert found.marked[1] == pytest.approx(0.1)


def test_dice_comes_first() -> None:
    """An empty tile that SPPG is surer of than of the structure stays marked."""
    tiles = [*(holding(1) for _ in range(50)), empty(-1), empty(2, found=5)]
    found = calibrate(tiles, most_marked=0.03)
    assert found.least == pytest.approx(-1, abs=1e-3)
    assert found.marked == (1.0, 0.5)


def test_no_limit_costs_what_another_one_gains() -> None:
    """The highest limit would silence the last empty tile, and a case with it."""
    faint = [tile(1, 0.5, 20, 20, 20) for _ in range(5)]
    tiles = [*(holding(3) for _ in range(9)), *faint, empty(0), empty(1)]
    found = calibrate(tiles, most_marked=0.03)
    assert found.least == pytest.approx(0, abs=1e-3)
    assert found.lost == 0


@pytest.mark.parametrize(
    "tiles",
    [
        [holding(2), holding(3)],
        [holding(2), empty(-1, found=0)],
        # it would cost the only case
        [holding(2), empty(3)],
    ],
)
def test_no_limit_where_nothing_is_gained(tiles: list[SeenTile]) -> None:
    assert calibrate(tiles, most_marked=0.03).least is None


@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.integers(0, 50), st.integers(0, 50)),
        min_size=1,
        max_size=20,
    )
)
def test_never_at_the_cost_of_dice(rows: list[tuple[float, int, int]]) -> None:
    tiles = [holding(1.0)] + [
        tile(0, strongest, there, found, min(there, found)) for strongest, there, found in rows
    ]
    found = calibrate(tiles, most_marked=0.03)
    assert found.dice[1] >= found.dice[0] - TOLERANCE
    assert found.marked[1] <= found.marked[0]
