"""Whether a version may be kept, and whether it may serve."""

from __future__ import annotations

from pathlib import Path

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import DeSam, EspMedSam
from esp_medsam_app.networks.modality_decoder import ModalityQueries
from esp_medsam_app.weights.integrity import check_sha256
from esp_medsam_app.weights.version_files import WEIGHTS, Shared, Version


def check_network(
    network: EspMedSam | DeSam, modality: Modality, expected: Modality | None
) -> None:
    """Look that what a network owns of a modality can be kept as a version.

    Args:
        network: that was trained.
        modality: one of its modalities, as it was trained.
        expected: as the bundle or the catalogue has it, if it does.

    Raises:
        WeightsError: it cannot; says why.
    """
    wrong = _other_labels(modality, expected)
    if isinstance(network, DeSam):
        found = network.decoder(modality.name).labels
        if found != len(modality.labels):
            wrong = f"the network draws {found} masks for {len(modality.labels)} labels"
    else:
        queries = network.queries[modality.name]
        assert isinstance(queries, ModalityQueries)
        if queries.decoded != len(modality.labels):
            wrong = f"the network has {queries.decoded} queries for {len(modality.labels)} labels"
        if not network.design.own_queries:
            wrong = "the network's modalities share their queries, so that none has versions"
    if wrong:
        raise WeightsError(f"{modality.name}: {wrong}")


def check_version(
    version: Version, folder: Path, shared: Shared, expected: Modality | None
) -> None:
    """Look that a version can serve.

    Args:
        version: its description.
        folder: where it lies.
        shared: weights that it would work with.
        expected: the modality as the bundle or the catalogue has it, if it does.

    Raises:
        WeightsError: made for other weights or labels, or damaged.
    """
    wrong = _other_labels(version.modality, expected)
    if version.shared != shared:
        wrong = "it was made for another backbone or decoder than the bundle has now"
    if wrong:
        raise WeightsError(wrong, path=folder, remedy="Train the modality again")
    try:
        check_sha256(folder / WEIGHTS, version.sha256)
    except WeightsError as error:
        raise WeightsError(
            error.problem, path=error.path, remedy="Restore another version, or train again"
        ) from error


def _other_labels(modality: Modality, expected: Modality | None) -> str:
    if expected is None or expected.labels == modality.labels:
        return ""
    return f"its labels are {', '.join(modality.labels)}, not {', '.join(expected.labels)}"
