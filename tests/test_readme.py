"""What the README says is what the repository holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esp_medsam_app.weights import load_bundle

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_scores_are_those_of_the_starter_bundle() -> None:
    description = load_bundle().description
    shown = {"test": 0, "unseen": 1}
    expected = {
        modality.name: tuple(
            _figures(description.scores.get(modality.name, {}).get(split)) for split in shown
        )
        for modality in description.modalities
    }
    cell = r"(\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}, \d+\)|-)"
    row = re.compile(rf"^\| `(\w+)` \| [^|]+ \| {cell} \| {cell} \|", re.MULTILINE)
    assert {name: tuple(figures) for name, *figures in row.findall(README)} == expected


def _figures(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    dice = score["dice"]
    low, high = dice["ci95"]
    return f"{dice['mean']:.3f} ({low:.3f} to {high:.3f}, {score['cases']})"


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
