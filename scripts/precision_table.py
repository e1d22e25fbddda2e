"""Print the table of scripts/precisions.sh.

Arguments: the work folder and the ways, `fast_float32 fast_bfloat16`; the first is what the others
are compared with, case by case. Differences are in points of Dice, hundredths: their mean, its 95 %
bootstrap interval, and the largest.

`--write BUNDLE` before them also writes into that bundle which modalities need float32: those that
lose more than 0.2 points on average in another way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esp_medsam_app.evaluation.metrics import bootstrap_interval
from esp_medsam_app.weights.bundle import load_any_bundle, save_description

MOST_LOST = 0.2  # points of Dice


def main(work: Path, first: str, *others: str, bundle: Path | None = None) -> None:
    """A row a modality that has all: Dice of the first way, mean and largest difference of each."""
    begun = sorted(file.stem.removesuffix(f"_{first}") for file in work.glob(f"*_{first}.json"))
    rows = [
        name for name in begun if all((work / f"{name}_{way}.json").is_file() for way in others)
    ]
    if not rows:
        sys.exit(f"{work}: no reports of scripts/precisions.sh here")
    print(f"| modality (val cases) | Dice, {first} | " + " | ".join(others) + " |")
    print("| --- " * (len(others) + 2) + "|")
    losing = set()
    for modality in rows:
        own = _by_name(work / f"{modality}_{first}.json")
        cells = [f"`{modality}` ({len(own)})", f"{_mean(list(own.values())):.4f}"]
        for way in others:
            other = _by_name(work / f"{modality}_{way}.json")
            assert other.keys() == own.keys(), (modality, way)
            differences = [100 * (other[name] - own[name]) for name in own]
            cells.append(told(differences))
            if _mean(differences) < -MOST_LOST:
                losing.add(modality)
        print("| " + " | ".join(cells) + " |")
    if bundle is not None:
        write(bundle, dict.fromkeys(rows, False) | dict.fromkeys(losing, True))


def write(path: Path, found: Mapping[str, bool]) -> None:
    """Say in a bundle which of these modalities need float32; of others nothing changes."""
    bundle = load_any_bundle(path)
    before = bundle.description.precision
    bundle.description.precision = {
        name: "float32" for name in bundle.modalities if found.get(name, name in before)
    }
    save_description(bundle)
    print(f"{path}: float32 for {', '.join(bundle.description.precision) or 'none'}")


def told(differences: list[float]) -> str:
    """Mean, its 95 % bootstrap interval, and the largest of some differences."""
    interval = bootstrap_interval(differences)
    assert interval is not None
    low, high = interval
    worst = max(differences, key=abs)
    return f"{_mean(differences):+.2f} ({low:+.2f} to {high:+.2f}; one case {worst:+.2f})"


def _by_name(report: Path) -> dict[tuple[str, int], float]:
    """Dice of each case; data sets may have names in common, so the place counts too."""
    cases: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))["per_case"]
    return {(case["name"], place): case["dice"] for place, case in enumerate(cases)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    to_write = None
    if arguments[0] == "--write":
        to_write = Path(arguments[1])
        arguments = arguments[2:]
    main(Path(arguments[0]), *arguments[1:], bundle=to_write)
