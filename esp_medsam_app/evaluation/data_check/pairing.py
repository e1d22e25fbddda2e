"""Finding the cases of a data folder, and all that has no partner, without stopping."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from esp_medsam_app.data.names import case_name
from esp_medsam_app.data.reading import is_readable_name
from esp_medsam_app.evaluation.data_check.report import Finding
from esp_medsam_app.evaluation.pairs import CasePair

_LAYOUT = "A data folder holds `images/` and `labels/` with equal file names"
# What may lie beside a header of .mhd or .nhdr.
_BESIDE_HEADERS = (".raw", ".zraw", ".raw.gz")


def collect_pairs(folder: Path, split: str) -> tuple[list[CasePair], list[Finding]]:
    """The cases of a data folder by name, and what is wrong with its files' names.

    As `find_pairs`, but it goes on after a problem: a stem that occurs twice gives the first file
    of that name, a file without partner gives no case.
    """
    try:
        return _collect(folder, split)
    except OSError as error:
        problem = f"the folder cannot be read ({error.strerror or error})"
        path = Path(error.filename or folder)
        remedy = "Check its permissions and the disk"
        return [], [Finding("error", "unreadable", split, path, problem, remedy)]


def _collect(folder: Path, split: str) -> tuple[list[CasePair], list[Finding]]:
    if not folder.is_dir():
        return [], [Finding("error", "pair", split, folder, "there is no such folder", _LAYOUT)]
    findings: list[Finding] = []
    stems: dict[str, dict[str, Path]] = {}
    for part in ("images", "labels"):
        if (folder / part).is_dir():
            stems[part], found = _by_stem(folder / part, split)
            findings += found
        else:
            problem = f"the folder has no `{part}/`"
            findings.append(Finding("error", "pair", split, folder, problem, _LAYOUT))
    if len(stems) < 2:
        return [], findings
    images, labels = stems["images"], stems["labels"]
    findings += _lonely(images, labels, "image", "labels", split)
    findings += _lonely(labels, images, "label map", "images", split)
    pairs = [
        CasePair(stem, images[stem], labels[stem]) for stem in sorted(images) if stem in labels
    ]
    if not pairs:
        problem = "the folder holds no whole case"
        findings.append(Finding("error", "pair", split, folder, problem, _LAYOUT))
    return pairs, findings


def _by_stem(folder: Path, split: str) -> tuple[dict[str, Path], list[Finding]]:
    found: dict[str, Path] = {}
    findings: list[Finding] = []
    left_out: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not is_readable_name(path):
            if not path.name.lower().endswith(_BESIDE_HEADERS):
                left_out.append(path)
            continue
        stem = case_name(path)
        if stem in found:
            problem = f"this file and {found[stem].name} have the same name but for the suffix"
            remedy = "Keep one of the two"
            findings.append(Finding("error", "pair", split, path, problem, remedy))
        found.setdefault(stem, path)
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        problem = f"no name of an image: this{more} will not be used"
        remedy = "Convert what is an image, for example to PNG or NIfTI, and move the rest away"
        findings.append(Finding("warning", "left out", split, left_out[0], problem, remedy))
    return found, findings


def _lonely(
    have: dict[str, Path], lack: Iterable[str], kind: str, where: str, split: str
) -> list[Finding]:
    problem = f"this {kind} has no partner of the same name in `{where}/`"
    return [
        Finding("error", "pair", split, have[stem], problem, f"Add `{where}/{stem}.*` or remove it")
        for stem in sorted(set(have) - set(lack))
    ]
