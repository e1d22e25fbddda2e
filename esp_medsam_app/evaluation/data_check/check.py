"""The whole check, from folders to the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.data_check.leaks import find_leaks
from esp_medsam_app.evaluation.data_check.measure import Case, measure_case
from esp_medsam_app.evaluation.data_check.pairing import collect_pairs
from esp_medsam_app.evaluation.data_check.report import (
    DataReport,
    Finding,
    LabelCount,
    SplitCount,
)
from esp_medsam_app.evaluation.data_check.suspicions import missing_labels, suspicious_cases
from esp_medsam_app.evaluation.splits import patient_of
from esp_medsam_app.modalities import Modality


def check_data(
    folders: Mapping[str, Sequence[Path]],
    modality: Modality,
    pattern: re.Pattern[str] | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> DataReport:
    """Check data folders, each with `images/` and `labels/`, over all cases.

    One case at a time is in memory.

    Args:
        folders: by split; an image that two splits share is told with the later one.
        modality: whose labels they hold.
        pattern: finds the patient in a file name, where DICOM does not name one.
        on_case: called after each case with the number done and of all.

    Raises:
        InputError: a folder is given twice.
    """
    _check_distinct(folders)
    findings: list[Finding] = []
    pairs = []
    for split, paths in folders.items():
        for folder in paths:
            found, problems = collect_pairs(folder, split)
            pairs += [(split, pair) for pair in found]
            findings += problems
    cases: list[Case] = []
    for split, pair in pairs:
        case, problems = measure_case(pair, split, patient_of(pair.image, pattern), modality)
        cases.append(case)
        findings += problems
        on_case(len(cases), len(pairs))
    if pattern is not None:
        findings += _without_patient(cases, pattern)
    findings += missing_labels(cases, modality)
    findings += find_leaks(cases)
    findings += suspicious_cases(cases, modality)
    splits = list(folders)
    findings.sort(
        key=lambda found: (found.severity == "warning", found.kind, splits.index(found.split))
    )
    return DataReport(modality.name, _counts(folders, cases, modality), tuple(findings))


def _check_distinct(folders: Mapping[str, Sequence[Path]]) -> None:
    seen: dict[Path, str] = {}
    for split, paths in folders.items():
        for folder in paths:
            if (key := folder.resolve()) in seen:
                raise InputError(
                    f"this data folder is given twice, as '{seen[key]}' and as '{split}'",
                    path=folder,
                    remedy="Give each folder to one split",
                )
            seen[key] = split


def _without_patient(cases: Sequence[Case], pattern: re.Pattern[str]) -> list[Finding]:
    findings = []
    for split in dict.fromkeys(case.split for case in cases):
        members = [case for case in cases if case.split == split]
        nobody = [case for case in members if case.patient is None]
        if nobody:
            problem = (
                f"the patient pattern '{pattern.pattern}' is not in the names of {len(nobody)} of "
                f"{len(members)} images, such as this one"
            )
            remedy = "Whether their patients are in other splits is not checked"
            findings.append(
                Finding("warning", "no patient", split, nobody[0].pair.image, problem, remedy)
            )
    return findings


def _counts(
    folders: Mapping[str, Sequence[Path]], cases: Sequence[Case], modality: Modality
) -> dict[str, SplitCount]:
    counts = {}
    for split in folders:
        facts = [
            case.label
            for case in cases
            if case.split == split and case.image is not None and case.label is not None
        ]
        labels = {}
        for name in modality.labels:
            found = [fact.structures[name] for fact in facts if name in fact.structures]
            slices = sum(structure.slices for structure in found)
            areas = sum(structure.areas for structure in found)
            labels[name] = LabelCount(len(found), slices, areas / slices if slices else None)
        counts[split] = SplitCount(len(facts), sum(fact.slices for fact in facts), labels)
    return counts
