"""What the README says is what the repository holds."""

from __future__ import annotations

import re
from pathlib import Path

from esp_medsam_app.weights import load_bundle

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_scores_are_those_of_the_starter_bundle() -> None:
    description = load_bundle().description
    expected = {
        name: (
            f"{score['dice']['mean']:.3f}",
            f"{score['dice']['std']:.3f}",
            str(score["cases"]),
        )
        for name, score in description.scores.items()
    }
    row = re.compile(r"^\| `(\w+)` \|.*\| ([\d.]+) \(sd ([\d.]+), (\d+) cases\) \|$", re.MULTILINE)
    assert {name: tuple(figures) for name, *figures in row.findall(README)} == expected
    assert set(expected) == {modality.name for modality in description.modalities}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
