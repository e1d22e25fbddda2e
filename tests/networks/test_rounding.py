"""Rounded weights are right in the mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esp_medsam_app.networks.rounding import Moments, rounded

TYPES = [torch.bfloat16, torch.float16]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.double)


def shifts(weight: Tensor, bias: Tensor, mean: Tensor, found: tuple[Tensor, Tensor]) -> Tensor:
    """How far off each output is in the mean."""
    apart = (found[0].double() - weight) * mean
    return apart.flatten(1).sum(1) + found[1].double() - bias


@given(seed=st.integers(0, 1000), dtype=st.sampled_from(TYPES))
@settings(max_examples=30, deadline=None)
def test_rounding_cancels_in_the_mean(seed: int, dtype: torch.dtype) -> None:
    weight, bias, mean = (
        drawn(16, 64, seed=seed),
        drawn(16, seed=seed + 1),
        drawn(64, seed=seed + 2),
    )
    found = rounded(weight, bias, mean, dtype)
    plain = weight.to(dtype), bias.to(dtype)
    kept = shifts(weight, bias, mean, found).abs()
    assert (kept <= shifts(weight, bias, mean, plain).abs()).all()
    assert kept.mean() < 0.1 * shifts(weight, bias, mean, plain).abs().mean()
    assert found[0].dtype is found[1].dtype is dtype


@pytest.mark.parametrize("dtype", TYPES)
def test_each_weight_is_one_of_the_two_beside_it(dtype: torch.dtype) -> None:
    weight, bias, mean = drawn(32, 64), drawn(32), drawn(64)
    found, _ = rounded(weight, bias, mean, dtype)
    nearest = weight.to(dtype)
    turned = found != nearest
    assert 0 < turned.sum() <= 3 * len(weight)
    # at most three quarters of a step away: those close to their nearest stay there
    step = torch.finfo(dtype).eps * weight.abs()
    assert ((found.double() - weight).abs() <= 0.76 * step).all()


def test_without_a_mean_and_in_float32_all_go_to_the_nearest() -> None:
    weight, bias, mean = drawn(4, 8), drawn(4), drawn(8)
    assert torch.equal(rounded(weight, bias, None, torch.bfloat16)[0], weight.bfloat16())
    assert torch.equal(rounded(weight, bias, mean, torch.float32)[0], weight.float())


def test_outputs_may_take_inputs_of_their_own() -> None:
    weight, bias, mean = drawn(32, 1, 3, 3), drawn(32), drawn(32, 1, 1, 1)
    found = rounded(weight, bias, mean, torch.bfloat16)
    plain = weight.bfloat16(), bias.bfloat16()
    assert found[0].shape == weight.shape
    kept = shifts(weight, bias, mean, found).abs().mean()
    assert kept < 0.6 * shifts(weight, bias, mean, plain).abs().mean()


def test_moments_are_those_of_samples() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1e-3]))
        norm.bias.copy_(torch.tensor([-1.0, 0.3, 2.0]))
    moments = Moments.behind(norm)
    samples = drawn(200_000, 3) * norm.weight.detach() + norm.bias.detach()
    for found, wanted in (
        (moments.gelu(), F.gelu(samples)),
        (moments.plus(moments).gelu(), F.gelu(samples + samples.flip(0))),
    ):
        torch.testing.assert_close(found.mean, wanted.mean(0), atol=0.01, rtol=0.01)
        torch.testing.assert_close(found.variance, wanted.var(0), atol=0.01, rtol=0.03)
