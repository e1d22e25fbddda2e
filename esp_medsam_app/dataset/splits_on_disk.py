"""Which cases a campaign trains and judges on, of `DATA/<modality>/<data set>/<split>/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair, find_pairs, without
from esp_medsam_app.modalities import Modality

# cases of a volume data set that are judged
VAL_VOLUMES = 8
_VOLUMES = (".nii.gz", ".nii", ".nrrd")

LeftOut = Mapping[tuple[str, str], Sequence[str]]


def read_left_out(file: Path) -> LeftOut:
    """Cases that are not used, by modality and split: lines of `modality split case`.

    Raises:
        InputError: the file cannot be read, or a line has another number of words.
    """
    try:
        rows = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", path=file) from error
    found: dict[tuple[str, str], list[str]] = {}
    for number, row in enumerate(rows, start=1):
        if not row.strip() or row.startswith("#"):
            continue
        words = row.split()
        if len(words) != 3:
            raise InputError(
                f"line {number} has {len(words)} words",
                path=file,
                remedy="Write: modality split case",
            )
        found.setdefault((words[0], words[1]), []).append(words[2])
    return found


def cases_of_split(
    data: Path, modality: Modality, split: str, left_out: LeftOut
) -> tuple[list[Path], list[CasePair]]:
    """Folders and cases of all data sets of a modality; none where there is no such split.

    Args:
        data: folder of `<modality>/<data set>/<split>/{images,labels}`.
        modality: whose cases.
        split: `train`, `val`, ...
        left_out: cases that are not used.

    Raises:
        InputError: as `find_pairs`, or a case that is left out is not there.
    """
    folders = sorted(path.parent for path in (data / modality.name).glob(f"*/{split}/images"))
    if not folders:
        return [], []
    found = find_pairs(folders)
    names = left_out.get((modality.name, split), [])
    return folders, without(found, names) if names else found


def judged_cases(pairs: Sequence[CasePair], modality: Modality) -> list[CasePair]:
    """All pictures and single slices; of volumes the first `VAL_VOLUMES` of each data set."""
    kept: list[CasePair] = []
    seen: dict[Path, int] = {}
    for pair in pairs:
        if modality.dimension == 3 and pair.image.name.endswith(_VOLUMES):
            folder = pair.image.parent
            seen[folder] = seen.get(folder, 0) + 1
            if seen[folder] > VAL_VOLUMES:
                continue
        kept.append(pair)
    return kept
