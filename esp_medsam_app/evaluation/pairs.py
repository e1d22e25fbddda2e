"""Pairs of an image and its reference label map, found in folders and read with checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esp_medsam_app.data.alignment import check_alignment
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.names import case_name, unique_names
from esp_medsam_app.data.reading import is_readable_name, read_image, read_label_map
from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality


@dataclass(frozen=True)
class CasePair:
    """An image (a file or the folder of a DICOM series) and its reference label map."""

    name: str
    image: Path
    label: Path


def find_pairs(folders: Iterable[str | Path]) -> list[CasePair]:
    """The cases of data folders, each with `images/` and `labels/` of equal stems, by name.

    Cases of several folders are pooled; names that clash get their folder's name in front.
    Raises InputError for a folder without `images/` or `labels/`, an image or label map without
    partner, two files of one stem, a folder given twice, and when there is no case at all.
    """
    found: list[tuple[Path, CasePair]] = []
    seen: set[Path] = set()
    for folder in map(Path, folders):
        if folder.resolve() in seen:
            raise InputError("this data folder is given twice", path=folder)
        seen.add(folder.resolve())
        found += [(folder, pair) for pair in _pairs_of(folder)]
    names = unique_names(
        [pair.name for _, pair in found],
        # as if the cases lay in the data folder itself: `images` tells nothing apart
        [folder.resolve() / pair.image.name for folder, pair in found],
    )
    return [
        CasePair(name, pair.image, pair.label) for name, (_, pair) in zip(names, found, strict=True)
    ]


def without(pairs: Sequence[CasePair], names: Iterable[str]) -> list[CasePair]:
    """The pairs but for those of some names, as of cases that stand in another split too.

    Raises InputError for a name that no pair has, and when none is left.
    """
    left_out = set(names)
    unknown = sorted(left_out - {pair.name for pair in pairs})
    if unknown:
        raise InputError(
            f"there is no case {unknown[0]!r} to leave out",
            remedy="Give the file's name without its suffix",
        )
    kept = [pair for pair in pairs if pair.name not in left_out]
    if not kept:
        raise InputError("every case was left out")
    return kept


def read_reference(path: Path, modality: Modality, grid: Grid | None = None) -> MedicalImage:
    """A reference label map whose values are labels of `modality`.

    Masks that mark their only label with 255, as pictures often do, are read as 0 and 1; this holds
    for modalities of one label only. `grid` is that of its image, where known: viewers store the
    label map of a picture as a volume of one slice. Raises InputError for values that are no label.
    """
    reference = read_label_map(path, grid)
    values = {int(value) for value in np.unique(reference.voxels)}
    if len(modality.labels) == 1 and 255 in values <= {0, 255}:
        (value,) = modality.labels.values()
        voxels = np.where(reference.voxels == 255, value, 0).astype(np.uint8)
        return MedicalImage(
            voxels=voxels,
            grid=reference.grid,
            path=reference.path,
            dicom_modality=reference.dicom_modality,
        )
    unknown = sorted(values - {0} - set(modality.labels.values()))
    if unknown:
        known = ", ".join(f"{value} = {name}" for name, value in modality.labels.items())
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"the label map holds values that '{modality.name}' has no label for: {shown}",
            path=path,
            remedy=f"Use 0 for background and {known}",
        )
    return reference


def read_pair(pair: CasePair, modality: Modality) -> tuple[MedicalImage, MedicalImage]:
    """Image and reference label map of a case, voxel on voxel.

    Raises InputError for what `read_image` and `read_reference` refuse, and when the two have
    different shapes or lie at different places in the patient.
    """
    image = read_image(pair.image)
    reference = read_reference(pair.label, modality, image.grid)
    check_alignment(reference.grid, image.grid, path=pair.label, image_name=pair.image.name)
    return image, reference


def check_references(pairs: Sequence[CasePair], modality: Modality) -> None:
    """Read every reference label map once, so that a bad one is told before hours of inference.

    Raises InputError as `read_reference` does.
    """
    for pair in pairs:
        read_reference(pair.label, modality)


def _pairs_of(folder: Path) -> list[CasePair]:
    remedy = "A data folder holds `images/` and `labels/` with equal file names"
    try:
        return _checked_pairs_of(folder, remedy)
    except OSError as error:
        raise InputError(
            f"the folder cannot be read ({error.strerror or error})",
            path=error.filename or folder,
            remedy="Check its permissions and the disk",
        ) from error


def _checked_pairs_of(folder: Path, remedy: str) -> list[CasePair]:
    if not folder.is_dir():
        raise InputError("there is no such folder", path=folder, remedy=remedy)
    for part in ("images", "labels"):
        if not (folder / part).is_dir():
            raise InputError(f"the folder has no `{part}/`", path=folder, remedy=remedy)
    images, labels = _by_stem(folder / "images"), _by_stem(folder / "labels")
    for have, lack, kind, where in (
        (images, labels, "image", "labels"),
        (labels, images, "label map", "images"),
    ):
        lonely = sorted(set(have) - set(lack))
        if lonely:
            more = f" ({len(lonely) - 1} more have none)" if len(lonely) > 1 else ""
            raise InputError(
                f"this {kind} has no partner of the same name in `{where}/`{more}",
                path=have[lonely[0]],
                remedy=f"Add `{where}/{lonely[0]}.*` or remove this file",
            )
    if not images:
        raise InputError("the folder holds no case", path=folder, remedy=remedy)
    return [CasePair(stem, images[stem], labels[stem]) for stem in sorted(images)]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not is_readable_name(path):
            continue
        stem = case_name(path)
        if stem in found:
            raise InputError(
                f"this file and {found[stem].name} have the same name but for the suffix",
                path=path,
                remedy="Keep one of the two",
            )
        found[stem] = path
    return found
