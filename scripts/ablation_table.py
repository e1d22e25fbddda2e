"""Print the table of docs/ablations.md from the reports of scripts/ablations.sh.

Arguments: the work folder and the modalities.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROWS = {
    "whole": "the whole design, supervised",
    "no_controllers": "without controllers",
    "no_sppg": "without SPPG (SAM's embedding of no mask instead)",
    "one_query": "one shared query and MLP",
    "distilled": "by distillation: controllers learn the teacher's embedding",
    "teacher": "the teacher itself: the whole encoder learns, one for all modalities",
}


def main(work: Path, modalities: list[str]) -> None:
    """A row a variant, a column a modality: mean Dice with its 95 % interval."""
    reports = {
        (name, modality): json.loads((work / name / f"{modality}.json").read_text("utf-8"))
        for name in ROWS
        for modality in modalities
    }
    counts = [f"{m} ({reports['whole', m]['cases']} cases)" for m in modalities]
    print("| variant | " + " | ".join(counts) + " | mean |")
    print("| --- " * (len(modalities) + 2) + "|")
    for name, title in ROWS.items():
        dice = [reports[name, modality]["dice"] for modality in modalities]
        cells = [f"{d['mean']:.3f} ({d['ci95'][0]:.3f} to {d['ci95'][1]:.3f})" for d in dice]
        mean = sum(d["mean"] for d in dice) / len(dice)
        print(f"| {title} | " + " | ".join(cells) + f" | {mean:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
