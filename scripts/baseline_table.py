"""Print the table of baselines from the reports of scripts/baselines.sh.

Argument: the work folder. A model's rate is measured against ESP-MedSAM's on the same cases in the
same run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

SPLITS = ("test", "unseen")


def main(work: Path) -> None:
    """A row a modality and split, a column a model; below, their sizes and rates."""
    reports = {
        (file.stem.removesuffix(f"_{split}"), split): json.loads(file.read_text("utf-8"))
        for split in SPLITS
        for file in sorted(work.glob(f"*_{split}.json"))
    }
    if not reports:
        sys.exit(f"{work}: no reports of scripts/baselines.sh here")
    compared = [report["comparison"]["models"] for report in reports.values()]
    names = [_name(model) for model in compared[0]]
    print("| modality, split | " + " | ".join(names) + " |")
    print("| --- " * (len(names) + 1) + "|")
    for (modality, split), report in sorted(reports.items()):
        models = report["comparison"]["models"]
        assert [_name(model) for model in models] == names, modality
        cells = [_dice(model["dice"]) for model in models]
        print(f"| `{modality}`, {split} ({report['cases']}) | " + " | ".join(cells) + " |")
    columns = list(zip(*compared, strict=True))
    print("| parameters | " + " | ".join(_parameters(column) for column in columns) + " |")
    print("| rate, of ESP-MedSAM's | " + " | ".join(_rate(c, columns[0]) for c in columns) + " |")


def _name(model: dict[str, Any]) -> str:
    return model["model"] if model["prompt"] == "none" else f"{model['model']}, {model['prompt']}"


def _dice(dice: dict[str, Any]) -> str:
    if dice["ci95"] is None:
        return f"{dice['mean']:.3f}"
    return f"{dice['mean']:.3f} ({dice['ci95'][0]:.3f} to {dice['ci95'][1]:.3f})"


def _parameters(column: tuple[dict[str, Any], ...]) -> str:
    sizes = [f"{size / 1e6:.1f} M" for size in sorted({model["parameters"] for model in column})]
    return sizes[0] if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"


def _rate(column: tuple[dict[str, Any], ...], ours: tuple[dict[str, Any], ...]) -> str:
    pairs = zip(column, ours, strict=True)
    ratios = [m["slices_per_second"] / own["slices_per_second"] for m, own in pairs]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
