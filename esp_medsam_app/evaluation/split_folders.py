"""A data folder copied into one folder a split, patient by patient."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.data.names import case_name
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair
from esp_medsam_app.evaluation.splits import patient_of, split_of

# Their voxels lie in other files.
_HEADERS_ONLY = (".mhd", ".nhdr")


@dataclass(frozen=True)
class PlannedCase:
    """A case, whose it is where that is known, and the split it goes to."""

    pair: CasePair
    patient: str | None
    split: str


def plan_split(
    pairs: Sequence[CasePair],
    shares: Mapping[str, float],
    pattern: re.Pattern[str] | None = None,
    seed: int = 0,
) -> list[PlannedCase]:
    """Choose a split for each case; all cases of a patient come to the same.

    Where neither DICOM nor `pattern` names a patient, each case is a patient of its own; but a
    pattern that is given must name one.

    Raises:
        InputError: shares that `split_of` refuses, or a name that `pattern` is not in.
    """
    planned = []
    for pair in pairs:
        patient = patient_of(pair.image, pattern)
        if patient is None and pattern is not None:
            raise InputError(
                f"the patient pattern '{pattern.pattern}' is not in this name",
                path=pair.image,
                remedy="Choose one that finds the patient in each name",
            )
        split = split_of(pair.name if patient is None else patient, shares, seed)
        planned.append(PlannedCase(pair, patient, split))
    return planned


def copy_split(
    planned: Sequence[PlannedCase],
    output: Path,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Copy the cases to `output/<split>/{images,labels}`, under the names they have.

    Raises:
        InputError: `output` holds a case already, lies within a folder of images, cannot be
            written to, or a case is a header whose voxels lie in another file. Nothing is copied
            in these cases, unless the disk is full.
    """
    _check(planned, output)
    try:
        for done, case in enumerate(planned, start=1):
            for source, part in ((case.pair.image, "images"), (case.pair.label, "labels")):
                target = output / case.split / part / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target)
                else:
                    shutil.copy2(source, target)
            on_case(done, len(planned))
    except OSError as error:
        raise InputError(
            f"the cases cannot be copied ({error.strerror or error})",
            path=error.filename2 or error.filename or output,
            remedy="Check the disk, remove what was copied, and start again",
        ) from error


def _check(planned: Sequence[PlannedCase], output: Path) -> None:
    sources = [path for case in planned for path in (case.pair.image, case.pair.label)]
    for source in sources:
        if source.name.lower().endswith(_HEADERS_ONLY):
            raise InputError(
                "this is a header only, its voxels lie in another file",
                path=source,
                remedy="Convert it to one file, .mha or .nrrd",
            )
    within = {path.resolve().parent for path in sources}
    if within & {output.resolve(), *output.resolve().parents}:
        raise InputError(
            "the output lies within the folder of the cases",
            path=output,
            remedy="Choose a folder beside images/ and labels/, or elsewhere",
        )
    existing = _existing(output)
    clashes = sorted(existing[case.pair.name] for case in planned if case.pair.name in existing)
    if clashes:
        count = len(clashes)
        raise InputError(
            f"{count} case{' is' if count == 1 else 's are'} there already",
            path=clashes[0],
            remedy="Choose another output folder, or remove the old cases",
        )


def _existing(output: Path) -> dict[str, Path]:
    """Files of cases in all splits of `output`, by name: in a split of another seed too."""
    if output.exists() and not output.is_dir():
        raise InputError("this is a file", path=output, remedy="Give a folder")
    return {
        case_name(path): path
        for part in ("images", "labels")
        for path in sorted(output.glob(f"*/{part}/*"))
    }
