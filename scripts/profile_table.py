"""Print the Dice of the package's bundles beside each other, from their bundle.json.

Arguments: profiles, by default all (`full compact desam`). A row for each modality, on `test` and
on `unseen`, that at least two of them were scored on.
"""

from __future__ import annotations

import sys
from typing import Any

from esp_medsam_app.weights.bundle import load_any_bundle
from esp_medsam_app.weights.profiles import PROFILES, profile_path

SPLITS = ("test", "unseen")


def main(*profiles: str) -> None:
    """The table, in Markdown."""
    names = profiles or PROFILES
    scores = [load_any_bundle(profile_path(name)).description.scores for name in names]
    entries = [(name, split) for name in scores[0] for split in SPLITS]
    print(f"| modality, split | {' | '.join(names)} |")
    print("| --- " * (len(names) + 1) + "|")
    for modality, split in entries:
        figures = [one.get(modality, {}).get(split) for one in scores]
        if sum(figure is not None for figure in figures) > 1:
            print(f"| `{modality}`, {split} | {' | '.join(map(_cell, figures))} |")


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    dice = figure["dice"]
    interval = dice["ci95"]
    between = "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}, "
    return f"{dice['mean']:.3f} ({between}{figure['cases']})"


if __name__ == "__main__":
    main(*sys.argv[1:])
