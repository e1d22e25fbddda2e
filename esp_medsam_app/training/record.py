"""What a run is, and what a bundle says about its own training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esp_medsam_app import __version__
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.networks.esp_medsam import WHOLE, Design
from esp_medsam_app.training.datasets import DATASETS
from esp_medsam_app.training.recipe import Optimisation
from esp_medsam_app.weights.bundle import Bundle

if TYPE_CHECKING:
    from esp_medsam_app.evaluation.pairs import CasePair

RUN = "run.json"
_COMPUTED = ("checkpoint*", "features*", "embeddings*", "targets*", "lessons*")


def claim_work(
    work: Path,
    recipe: Optimisation,
    pairs: Mapping[str, Sequence[CasePair]],
    start: Bundle | None,
    design: Design = WHOLE,
    *,
    teacher: str | None = None,
    encoder: str | None = None,
) -> None:
    """`claim` for a run on cases.

    Raises:
        InputError: the folder holds another run, whose checkpoint would be taken for this one's.
    """
    run = {
        "recipe": recipe.model_dump(mode="json"),
        "cases": {
            modality: [str(case.image.resolve()) for case in cases]
            for modality, cases in pairs.items()
        },
        "start": start.description.files if start is not None else None,
        "design": asdict(design),
    }
    others = {"teacher": teacher, "encoder": encoder}
    claim(work, run | {key: value for key, value in others.items() if value is not None})


def claim(work: Path, run: Mapping[str, Any]) -> None:
    """Keep a work folder to one run: the first call writes down which, later ones compare.

    Raises:
        InputError: the folder holds another run, whose checkpoint would be taken for this one's.
    """
    file = work / RUN
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError):
        known = None
    if known == run:
        return
    # slices know themselves what they were made of
    if any(path for kind in _COMPUTED for path in work.glob(kind)):
        raise InputError(
            "the work folder holds another run (other options, data or start)",
            path=work,
            remedy="Give another --work, or remove this folder",
        )
    with written_whole(file) as partial:
        partial.write_text(json.dumps(run, indent=2), encoding="utf-8")


def describe(
    recipe: Optimisation,
    pairs: Mapping[str, Sequence[CasePair]],
    folders: Mapping[str, Sequence[Path]],
    *,
    device: str,
) -> dict[str, Any]:
    """A run: its recipe, data (data set, split, licence, cases) and versions, as JSON values.

    Only the last two parts of a folder's path are kept: data set and split, not the machine.
    """
    return describe_run(recipe, described_data(pairs, folders), device=device)


def described_data(
    pairs: Mapping[str, Sequence[CasePair]], folders: Mapping[str, Sequence[Path]]
) -> dict[str, Any]:
    """The data of a run by modality, as JSON values."""
    return {
        modality: {
            "cases": len(cases),
            "sources": [_source(path) for path in folders[modality]],
        }
        for modality, cases in pairs.items()
    }


def describe_run(recipe: Optimisation, data: Mapping[str, Any], *, device: str) -> dict[str, Any]:
    """A run: its recipe, what `described_data` gave, versions of what computed it."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": dict(data),
        "device": device,
        "finished": datetime.now(timezone.utc).date().isoformat(),
        "versions": {"esp-medsam-app": __version__, "torch": version("torch")},
    }


def _source(folder: Path) -> dict[str, str]:
    name = folder.resolve().parts[-2]
    source = {"folder": "/".join(folder.resolve().parts[-2:])}
    known = DATASETS.get(name)
    if known is None:
        return source
    return source | {
        "title": known.title,
        "licence": known.licence,
        "licence_class": known.licence_class,
    }
