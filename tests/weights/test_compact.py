"""Matrices in 8 bits: close to what they were, and stable when done again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from esp_medsam_app.weights.compact import SCALE, compact, restore


def once(matrix: torch.Tensor) -> torch.Tensor:
    steps, scale = compact(matrix)
    return restore({"w": steps, "w" + SCALE: scale})["w"]


@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    exponent=st.floats(-12, 6),
)
def test_error_is_half_a_step_and_a_second_pass_changes_nothing(
    seed: int, size: tuple[int, int], exponent: float
) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    restored = once(matrix)
    largest = matrix.abs().amax(dim=1, keepdim=True)
    # half a step, and what the scale's eight bits and the clamp add
    assert ((restored - matrix).abs() <= largest * (0.5 / 127 + 0.004)).all()
    assert torch.equal(once(restored), restored)


def test_rows_of_zeros_stay_zero() -> None:
    assert torch.equal(once(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_other_tensors_pass() -> None:
    plain = {"a": torch.ones(2, dtype=torch.float16), "a.scaled": torch.zeros(1)}
    restored = restore(plain)
    assert restored.keys() == plain.keys()
    assert restored["a"].dtype == torch.float32
