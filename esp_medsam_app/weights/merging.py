"""Bundles put together: of single modalities, or between one and what it was trained further to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import WeightsError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.networks import EspMedSam
from esp_medsam_app.weights.bundle import (
    OWN_BACKBONE,
    Bundle,
    BundleDescription,
    mix_modality,
    save_description,
    save_modality,
)
from esp_medsam_app.weights.classifier_file import carry_over
from esp_medsam_app.weights.integrity import check_sha256, sha256_of


def merge_bundles(parts: Sequence[Bundle], output: Path, *, name: str) -> Bundle:
    """One bundle with the modalities of several that share all else, bit by bit.

    All are of ESP-MedSAM, or all of DeSAM.

    Scores, limits and what is said of the training come along; the classifier is that
    of the first that has one.

    Args:
        parts: one or more.
        output: folder that is written; none of theirs.
        name: of the bundle, for people.

    Raises:
        WeightsError: they differ in what they share, two of them have one modality, or a file is
            missing or damaged.
    """
    first = parts[0].description
    known: dict[str, Bundle] = {}
    for part in parts:
        if part.path.resolve() == output.resolve():
            raise WeightsError("a bundle cannot be merged into itself", path=output)
        _check_alike(parts[0], part)
        for modality in part.modalities:
            if modality in known:
                raise WeightsError(
                    f"{modality} is in {known[modality].path} already",
                    path=part.path,
                    remedy="Give one of them alone",
                )
            known[modality] = part
    shared = [file for file in (parts[0].shared_file, OWN_BACKBONE) if file in first.files]
    origins = dict.fromkeys(shared, parts[0])
    origins |= {part.modality_file(modality): part for modality, part in known.items()}
    _copy(origins, output)
    # prompts and rules of DeSAM are among what they share
    merged = first.model_copy(
        update={
            "name": name,
            "modalities": [part.modality(modality) for modality, part in known.items()],
            "training": {"runs": [run for part in parts for run in _runs(part)]},
            **{field: _together(parts, field) for field in first.by_modality},
            "modality_classifier": None,
            "files": {file: part.description.files[file] for file, part in origins.items()},
        }
    )
    bundle = replace(parts[0], path=output, description=merged)
    save_description(bundle)
    for part in parts:
        bundle = carry_over(part, bundle)
    return bundle


def mix_bundles(before: Bundle, after: Bundle, output: Path, *, share: float = 0.5) -> Bundle:
    """Weights between those of a bundle and of one that was trained further from it.

    What a training gains on its own site is largely kept, and what it loses on others largely not
    lost: weights on the straight line between the two (arXiv 2109.01903). Scores and limits of what
    is mixed are left out.

    Args:
        before: where the training began.
        after: what it wrote.
        output: folder that is written; none of theirs.
        share: of the way from `before` to `after`, 0 to 1.

    Raises:
        WeightsError: they differ in what they share, or one was not trained further from the other:
            no modality's weights differ, or its labels do, or only one has it; or a file is missing
            or damaged.
    """
    if output.resolve() in (before.path.resolve(), after.path.resolve()):
        raise WeightsError("a bundle cannot be mixed into itself", path=output)
    _check_alike(before, after)
    gone, changed = after.changes_from(before)
    known = before.modalities
    alike = all(
        name in known and known[name].labels == after.modality(name).labels for name in changed
    )
    if gone or not changed or not alike:
        raise WeightsError(
            f"it was not trained further from {before.path}",
            path=after.path,
            remedy="Give a bundle, and one that `esp-medsam train --start` made of it",
        )
    said = after.description
    _copy(dict.fromkeys(said.files, after), output)
    network, trained = before.load_network(changed), after.load_network(changed)
    files = dict(said.files)
    for name in changed:
        mix_modality(network, trained, name, share)
        file = after.modality_file(name)
        save_modality(output / file, network, name)
        files[file] = sha256_of(output / file)
    runs = _runs(after)
    earlier = len(_runs(before))
    further = [{**run, "share": share} for run in runs[earlier:]]
    kept = said.told_but_of(changed)
    mixed = said.model_copy(
        update={
            "training": {**said.training, "runs": [*runs[:earlier], *further]},
            # what is told of weights; DeSAM's smallest regions are told of labels
            **{field: kept[field] for field in BundleDescription.by_modality},
            "files": files,
        }
    )
    bundle = replace(after, path=output, description=mixed)
    save_description(bundle)
    return bundle


def replace_modality(
    bundle: Bundle,
    network: EspMedSam,
    modality: Modality,
    run: Mapping[str, Any],
    *,
    size: int | None = None,
) -> Bundle:
    """Write one modality of a network into a bundle, in place of what it has of that name, if any.

    What the bundle says of the old weights (scores, limits, precision) is left out.

    Args:
        bundle: its folder is changed; nothing else of it changes, bit by bit.
        network: of the bundle's shared weights; it has the modality.
        modality: as it was trained.
        run: how and on what, added to the bundle's training runs.
        size: side of the input at which the weights serve best, pixels; the bundle's by default.
    """
    said = bundle.description
    kept = said.told_but_of([modality.name])
    if size is not None:
        kept["sizes"][modality.name] = {"balanced": size}
    file = bundle.modality_file(modality.name)
    with written_whole(bundle.path / file) as partial:
        save_modality(partial, network, modality.name)
    changed = said.model_copy(
        update={
            **kept,
            "modalities": list((bundle.modalities | {modality.name: modality}).values()),
            "training": {**said.training, "runs": [*_runs(bundle), dict(run)]},
            "files": said.files | {file: sha256_of(bundle.path / file)},
        }
    )
    bundle = replace(bundle, description=changed)
    save_description(bundle)
    return bundle


def _copy(origins: Mapping[str, Bundle], output: Path) -> None:
    """Put files of bundles into a folder. Raises WeightsError for one that is damaged."""
    for file, part in origins.items():
        check_sha256(part.file(file), part.description.files[file])
        (output / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part.file(file), output / file)


def _together(parts: Sequence[Bundle], field: str) -> dict[str, object]:
    """What all tell of their modalities."""
    return {k: v for part in parts for k, v in getattr(part.description, field).items()}


def _runs(part: Bundle) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = part.description.training.get("runs", [])
    return runs


def _check_alike(one: Bundle, other: Bundle) -> None:
    """Raises WeightsError for two that do not share all but modalities."""
    for what, of_one, of_other in (
        ("family", one.family, other.family),
        ("backbone", one.description.backbone, other.description.backbone),
        ("input", one.description.input_size, other.description.input_size),
        ("design", one.description.design, other.description.design),
        ("shared part", _shared(one), _shared(other)),
    ):
        if of_one != of_other:
            raise WeightsError(
                f"its {what} is another than that of {one.path}",
                path=other.path,
                remedy="Merge bundles that were trained from one, each on modalities of its own",
            )
    if not one.description.design.own_queries and one is not other:
        raise WeightsError("its modalities share their queries", path=one.path)


def _shared(bundle: Bundle) -> tuple[object, ...]:
    """What no modality owns, beside backbone and design."""
    rules = {"prompts", "rules"}
    return (
        bundle.description.files.get(bundle.shared_file),
        bundle.description.model_dump(include=rules),
    )
