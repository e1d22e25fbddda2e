"""Which bundle of DeSAM a server stands on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from esp_medsam_app.modalities import Modality, catalogue
from esp_medsam_app.server.conf import desam_model_name, named_desam
from esp_medsam_app.weights.bundle import DESCRIPTION
from esp_medsam_app.weights.desam_bundle import (
    DeSamBundle,
    empty_desam,
    load_desam,
    starter_desam_path,
)


def served_desam(named: Path | None, own: Path, wanted: bool) -> DeSamBundle | None:
    """The bundle that was named, or the package's; none where there is none.

    Args:
        named: folder of the bundle.
        own: where an empty one is written, for trainings to add to, if one is needed.
        wanted: whether models of DeSAM were asked for by name.

    Raises:
        WeightsError: the bundle cannot be used.
    """
    found = _named_or_starter(named)
    if found is not None or not wanted:
        return found
    if (own / DESCRIPTION).is_file():
        return load_desam(own)
    return empty_desam(own)


def added_to_desam(
    wanted: Iterable[str], bundle: DeSamBundle | None, others: Mapping[str, Modality]
) -> dict[str, Modality]:
    """Modalities that the bundle lacks and that were asked for; unknown ones are left out.

    Args:
        wanted: names.
        bundle: of DeSAM; none yet.
        others: what ESP-MedSAM serves, and what an admin added.
    """
    known = {**catalogue(), **others}
    own = bundle.modalities if bundle is not None else {}
    return {name: known[name] for name in wanted if name in known and name not in own}


def desam_models(named: Path | None, models: str, others: Mapping[str, Modality]) -> list[str]:
    """Names of the models that a server with these options would have; writes nothing.

    Raises:
        WeightsError: the bundle cannot be used.
    """
    bundle = _named_or_starter(named)
    own = sorted(bundle.modalities) if bundle is not None else []
    added = added_to_desam(named_desam(models), bundle, others)
    return [desam_model_name(name) for name in (*own, *added)]


def _named_or_starter(named: Path | None) -> DeSamBundle | None:
    if named is not None:
        return load_desam(named)
    return load_desam() if (starter_desam_path() / DESCRIPTION).is_file() else None
