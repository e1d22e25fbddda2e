"""Reference outputs of the published networks, and how near a network of random weights can come.

The references are not part of this repository. Their folder is named by ESP_MEDSAM_PARITY, or lies
in `shared/parity` beside the repository; without it the tests that need them are skipped.

Such networks amplify rounding a thousand times and more. On a processor of another kind than that
of the references sums are taken in another order, and the references' own rounding shows. How much
that is at most tells the same network in float64. It is not allowed where another output, which
amplifies less, equals the reference to the last bit: there sums are taken in the same order.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Fill = Callable[[str, tuple[int, ...]], np.ndarray]

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "parity"
REFERENCES = Path(os.environ.get("ESP_MEDSAM_PARITY", BESIDE))
NEAR = 1e-4
# Two results in float32 lie apart by what both are off; the reference's part is not known.
SHARE = 3.0


def needs_reference(name: str) -> pytest.MarkDecorator:
    """Skips tests where this file of the references is not there."""
    there = (REFERENCES / name).is_file()
    return pytest.mark.skipif(not there, reason="no reference outputs on this machine")


def reference(name: str) -> dict[str, np.ndarray]:
    """The arrays of one of their files."""
    with np.load(REFERENCES / name) as file:
        return dict(file)


def load_fill() -> Fill:
    """What made the references' weights and inputs up, from a name and a shape."""
    spec = importlib.util.spec_from_file_location("parity_fill", REFERENCES / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fill: Fill = module.fill
    return fill


def made_up_checkpoint(listing: str, path: Path) -> Path:
    """A checkpoint of the shapes that a file of the references lists, filled as theirs was."""
    fill = load_fill()
    shapes = json.loads((REFERENCES / listing).read_text())
    state = {
        name: torch.from_numpy(np.asarray(fill(name, tuple(shape))))
        for name, shape in shapes.items()
    }
    torch.save(state, path)
    return path


def relative_error(found: torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    """Of all elements together."""
    wanted = torch.as_tensor(expected).double()
    return float((found.double() - wanted).norm() / wanted.norm())


def exact(network: Module) -> Module:
    """A copy in float64; positions stay in float32, in which segment-anything computes them."""
    network = copy.deepcopy(network).double()
    for part in network.modules():
        if isinstance(part, PositionEmbeddingRandom):
            part.float()
    return network


def reach(found: torch.Tensor, in_float64: torch.Tensor, *, same_sums: bool) -> float:
    """Largest relative error to a reference in float32 that rounding explains.

    Args:
        found: in float32.
        in_float64: the same.
        same_sums: whether sums are taken in the reference's order.
    """
    return NEAR if same_sums else max(NEAR, SHARE * relative_error(found, in_float64))
