"""Names of cases and of the files written for them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esp_medsam_app.data.formats import suffix_of
from esp_medsam_app.data.image import Grid


def case_name(path: str | Path) -> str:
    """The name of a case: the file name less its image suffix; a folder's name is kept whole.

    Only suffixes of image files are cut: `1.2.840.113` and `patient.07.nii.gz` keep their dots.
    """
    path = Path(path)
    if path.is_dir():
        return path.resolve().name
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def unique_names(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """`names` made distinct, where they clash, by the suffix or the folders of their `paths`.

    Names that clash with no other stay as they are. `a.png` and `a.jpg` become `a_png` and `a_jpg`;
    `x/a.png` and `y/a.png` become `x_a` and `y_a`. Letter case does not tell two names apart, since
    it does not on every file system. The result depends only on the arguments, not on their order,
    unless even the folders cannot tell two apart: these are numbered.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        groups[name.casefold()].append(index)
    result = list(names)
    taken = {key for key, members in groups.items() if len(members) == 1}
    for members in groups.values():
        if len(members) == 1:
            continue
        for index, name in zip(members, _told_apart(names, paths, members), strict=True):
            candidate, number = name, 2
            while candidate.casefold() in taken:
                candidate, number = f"{name}_{number}", number + 1
            taken.add(candidate.casefold())
            result[index] = candidate
    return result


def label_map_suffix(grid: Grid) -> str:
    """What a label map on this grid is written as: `.png` for a picture, `.nii.gz` for the rest.

    An X-ray has no place in the patient, but a pixel size: viewers show it at that size, at which
    a PNG could not be laid over it.
    """
    picture = (
        len(grid.shape) == 2
        and not grid.has_patient_space
        and np.array_equal(grid.affine, np.eye(4))
    )
    return ".png" if picture else ".nii.gz"


def _told_apart(names: Sequence[str], paths: Sequence[Path], members: list[int]) -> list[str]:
    """The shortest additions that make the names of one clashing group distinct."""
    suffixes = [paths[i].name[len(names[i]) :].replace(".", "_") for i in members]
    with_suffix = [names[i] + suffix for i, suffix in zip(members, suffixes, strict=True)]
    folders = [paths[i].absolute().parts[1:-1] for i in members]
    if _distinct(with_suffix):
        return with_suffix
    for depth in range(1, max(map(len, folders)) + 1):
        prefixes = ["_".join(parts[-depth:]) for parts in folders]
        for plain in ([names[i] for i in members], with_suffix):
            candidate = [f"{a}_{b}" for a, b in zip(prefixes, plain, strict=True)]
            if _distinct(candidate):
                return candidate
    return with_suffix


def _distinct(names: Sequence[str]) -> bool:
    return max(Counter(name.casefold() for name in names).values()) == 1
