"""The shipped bundles give what they gave when they landed: code or weights that drift fail."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "starter_figures.py"
# Processors differ in the order of their sums.
DICE, LOGIT = 0.01, 0.02


def test_figures_on_the_sample_data(samples: Path) -> None:
    spec = importlib.util.spec_from_file_location("starter_figures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    expected = json.loads(script.REFERENCE.read_text(encoding="utf-8"))
    found = script.figures(samples)
    for kind, tolerance in (("dice", DICE), ("logits", LOGIT)):
        assert found[kind].keys() == expected[kind].keys()
        drifted = {
            name: (value, expected[kind][name])
            for name, value in found[kind].items()
            if abs(value - expected[kind][name]) > tolerance * max(1, abs(expected[kind][name]))
        }
        assert drifted == {}, f"{kind}: now, then"
    assert expected["dice"]
    assert len(expected["logits"]) >= 20
