"""The ledger of cycles: a CSV file that rows are only ever added to."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.training.campaign import CycleResult
from esp_medsam_app.training.recipe import Recipe
from esp_medsam_app.training.validation import site_means

COLUMNS = (
    "utc", "modality", "cycle", "recipe", "steps", "views", "seconds", "processor", "size", "site",
    "cases", "before", "half", "whole", "gain", "error", "kept_share",
)  # fmt: skip
# columns that hold the Dice of a candidate, by its share of the way
_BY_SHARE = {0.5: "half", 1.0: "whole"}


@dataclass(frozen=True)
class Entry:
    """A cycle that is done.

    Attributes:
        utc: when.
        modality: whose.
        cycle: its number.
        recipe_name: of the recipe.
        recipe: as it was run.
        seconds: it took.
        processor: that computed.
        result: what it gave.
    """

    utc: str
    modality: str
    cycle: int
    recipe_name: str
    recipe: Recipe
    seconds: float
    processor: str
    result: CycleResult

    def rows(self) -> Iterator[dict[str, object]]:
        """A row for each size and site."""
        result, recipe = self.result, self.recipe
        tried = max(result.candidates, key=lambda candidate: candidate.verdict.gain)
        common = {
            "utc": self.utc,
            "modality": self.modality,
            "cycle": self.cycle,
            "recipe": self.recipe_name,
            "steps": recipe.joint_steps,
            "views": recipe.joint_steps * recipe.joint_batch * recipe.accumulate,
            "seconds": round(self.seconds),
            "processor": self.processor,
            "gain": f"{tried.verdict.gain:.4f}",
            "error": f"{tried.verdict.error:.4f}",
            "kept_share": result.chosen.share if result.chosen is not None else 0,
        }
        for size, sites in result.before.items():
            for site, before in site_means(sites).items():
                tried_here = {
                    _BY_SHARE[c.share]: f"{site_means(c.dice[size])[site]:.4f}"
                    for c in result.candidates
                    if c.share in _BY_SHARE
                }
                yield (
                    common
                    | tried_here
                    | {
                        "size": size,
                        "site": site,
                        "cases": len(sites[site]),
                        "before": f"{before:.4f}",
                    }
                )


def append(file: Path, entry: Entry) -> None:
    """Add a cycle's rows at the end of a ledger, which is made if it is not there."""
    _write(file, entry.rows())


def append_file(file: Path, other: Path) -> int:
    """Add the rows of another ledger that this one lacks; how many were added."""
    known = set(map(tuple, _read(file))) if file.is_file() else set()
    rows = [row for row in _read(other) if tuple(row) not in known]
    _write(file, (dict(zip(COLUMNS, row, strict=True)) for row in rows))
    return len(rows)


def _read(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.reader(opened))[1:]


def _write(file: Path, rows: Iterator[dict[str, object]]) -> None:
    fresh = not file.is_file()
    with file.open("a", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        if fresh:
            writer.writeheader()
        writer.writerows(rows)
