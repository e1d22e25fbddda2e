"""What a bundle says about its own training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.training.datasets import DATASETS
from esp_medsam_app.training.recipe import Recipe


def describe(
    recipe: Recipe,
    pairs: Mapping[str, Sequence[CasePair]],
    folders: Mapping[str, Sequence[Path]],
    *,
    device: str,
) -> dict[str, Any]:
    """A run: its recipe, data (data set, split, licence, cases) and versions, as JSON values.

    Only the last two parts of a folder's path are kept: data set and split, not the machine.
    """
    return {
        "recipe": recipe.model_dump(),
        "data": {
            modality: {
                "cases": len(cases),
                "sources": [_source(path) for path in folders[modality]],
            }
            for modality, cases in pairs.items()
        },
        "device": device,
        "finished": datetime.now(timezone.utc).date().isoformat(),
        "versions": {name: version(name) for name in ("esp-medsam-app", "torch", "monai")},
    }


def _source(folder: Path) -> dict[str, str]:
    name = folder.resolve().parts[-2]
    source = {"folder": "/".join(folder.resolve().parts[-2:])}
    known = DATASETS.get(name)
    return source if known is None else source | known._asdict()
