"""Labels that are missing, and cases that a person should look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from esp_medsam_app.evaluation.data_check.measure import Case, LabelFacts, Structure
from esp_medsam_app.evaluation.data_check.report import Finding, Kind
from esp_medsam_app.modalities import Modality

# More of an image than this is no structure any more, but the background marked by mistake.
NEARLY_ALL = 0.95
# Fewer cases do not say what is usual.
FEWEST_CASES = 12
# Sizes are compared as logarithms, in robust standard deviations from the median, and by factor.
UNUSUAL_DEVIATIONS = 5.0
UNUSUAL_FACTOR = 4.0
# A structure of more parts than this, as vessels and nuclei, has small ones by nature.
MOST_PIECES = 2


def missing_labels(cases: Sequence[Case], modality: Modality) -> list[Finding]:
    """Labels that occur in no case of a split, as errors; nothing can be learned or scored."""
    findings = []
    for split in dict.fromkeys(case.split for case in cases):
        maps = [case for case in cases if case.split == split and case.label is not None]
        for name, value in modality.labels.items():
            if maps and not any(case.label and name in case.label.structures for case in maps):
                findings.append(
                    Finding(
                        "error",
                        "missing label",
                        split,
                        maps[0].pair.label.parent,
                        f"no label map of '{split}' marks {name} ({value})",
                        f"Add cases with {name}, or check the numbers of the labels",
                    )
                )
    return findings


def suspicious_cases(cases: Sequence[Case], modality: Modality) -> list[Finding]:
    """Warnings about single cases, some by what the other cases are like."""
    findings = []
    for case in cases:
        if case.image is not None and case.image.constant:
            problem = "all values of the image are equal: there is nothing to see"
            findings.append(_warning(case, "constant image", problem, "Export it again", False))
        if case.label is not None:
            findings += _of_label_map(case, case.label)
    for name in modality.labels:
        for volume in (False, True):
            having = [
                (case, case.label.structures[name])
                for case in cases
                if case.label is not None
                and case.label.volume is volume
                and name in case.label.structures
            ]
            findings += _unusual_sizes(having, name)
            findings += _specks(having, name)
    return findings


def _of_label_map(case: Case, label: LabelFacts) -> Iterable[Finding]:
    if not label.structures:
        problem = "the label map marks nothing"
        yield _warning(case, "empty label map", problem, "Right only if nothing is to be found")
    for name, structure in label.structures.items():
        if structure.share > NEARLY_ALL:
            problem = f"{name} covers {structure.share:.1%} of the image"
            yield _warning(case, "covers all", problem, "Is the background marked by mistake?")
        elif structure.touches_all:
            problem = f"one part of {name} reaches every border of the image"
            yield _warning(
                case, "touches all borders", problem, "Is the background marked by mistake?"
            )


def _unusual_sizes(having: Sequence[tuple[Case, Structure]], name: str) -> Iterable[Finding]:
    if len(having) < FEWEST_CASES:
        return
    sizes = np.log([structure.size for _, structure in having])
    middle = float(np.median(sizes))
    spread = 1.4826 * float(np.median(np.abs(sizes - middle)))
    limit = max(UNUSUAL_DEVIATIONS * spread, float(np.log(UNUSUAL_FACTOR)))
    for (case, _), size in zip(having, sizes, strict=True):
        if abs(size - middle) > limit:
            factor = float(np.exp(abs(size - middle)))
            which = "larger" if size > middle else "smaller"
            times = f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"
            problem = f"{name} is {times} times {which} than in the median case"
            yield _warning(case, "unusual size", problem, "Look at the label map over its image")


def _specks(having: Sequence[tuple[Case, Structure]], name: str) -> Iterable[Finding]:
    if not having or np.median([structure.pieces for _, structure in having]) > MOST_PIECES:
        return
    for case, structure in having:
        if structure.specks:
            count = f"{structure.specks} tiny speck" + ("s" if structure.specks > 1 else "")
            problem = f"{name} has {count} away from the rest"
            yield _warning(case, "specks", problem, "Remove what the brush left by mistake")


def _warning(case: Case, kind: Kind, problem: str, remedy: str, of_label: bool = True) -> Finding:
    path = case.pair.label if of_label else case.pair.image
    return Finding("warning", kind, case.split, path, problem, remedy)
