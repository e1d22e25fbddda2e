"""The same image or patient in two splits: scores would be better than they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from esp_medsam_app.evaluation.data_check.fingerprint import find_alike
from esp_medsam_app.evaluation.data_check.measure import Case
from esp_medsam_app.evaluation.data_check.report import Finding

_KEEP_ONE = "Remove one of the two, or move both into one split"


def find_leaks(cases: Sequence[Case]) -> list[Finding]:
    """Images and patients that splits share, as errors; doubles within a split, as warnings.

    Of the two the finding names the one that comes later in `cases`, once, and with it the one of
    an earlier split that is most alike.
    """
    usable = [case for case in cases if case.image is not None and not case.image.constant]
    same, taken = _same_images(usable)
    return same + _near_duplicates(usable, taken) + _same_patients(cases)


def _same_images(cases: Sequence[Case]) -> tuple[list[Finding], set[int]]:
    """The findings, and the positions of the later images of other splits."""
    findings: list[Finding] = []
    across: set[int] = set()
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for position, case in enumerate(cases):
        assert case.image is not None
        earlier = by_content[case.image.fingerprint.digest]
        others = [index for index in earlier if cases[index].split != case.split]
        earlier.append(position)
        if others:
            other = cases[others[0]]
            across.add(position)
            problem = f"the very same image is in '{other.split}': {other.pair.image}"
            findings.append(
                Finding("error", "same image", case.split, case.pair.image, problem, _KEEP_ONE)
            )
        elif len(earlier) > 1:
            other = cases[earlier[0]]
            problem = f"the very same image is in this split twice: {other.pair.image}"
            labels = (case.label, other.label)
            if all(labels) and labels[0].digest != labels[1].digest:  # type: ignore[union-attr]
                problem += ", with another label map"
            remedy = "Remove one of the two"
            findings.append(
                Finding("warning", "duplicate", case.split, case.pair.image, problem, remedy)
            )
    return findings, across


def _near_duplicates(cases: Sequence[Case], taken: set[int]) -> list[Finding]:
    prints = [case.image.fingerprint for case in cases if case.image is not None]
    best: dict[int, tuple[float, int]] = {}
    for alike in find_alike(prints, [case.split for case in cases]):
        if alike.second not in taken:
            found = (alike.correlation, alike.first)
            best[alike.second] = max(best.get(alike.second, (0.0, 0)), found)
    findings = []
    for position, (correlation, first) in sorted(best.items()):
        case, other = cases[position], cases[first]
        problem = (
            f"it looks the same (correlation {correlation:.3f}, perhaps mirrored, turned or "
            f"re-encoded) as one in '{other.split}': {other.pair.image}"
        )
        remedy = f"Compare them. {_KEEP_ONE}"
        findings.append(
            Finding("error", "near duplicate", case.split, case.pair.image, problem, remedy)
        )
    return findings


def _same_patients(cases: Sequence[Case]) -> list[Finding]:
    by_patient: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.patient is not None:
            by_patient[case.patient].append(case)
    findings = []
    for patient, theirs in by_patient.items():
        first = theirs[0]
        told = {first.split}
        for case in theirs:
            if case.split in told:
                continue
            told.add(case.split)
            problem = f"patient {patient} is in '{first.split}' too: {first.pair.image}"
            remedy = "Move all images of a patient into one split"
            findings.append(
                Finding("error", "same patient", case.split, case.pair.image, problem, remedy)
            )
    return findings
