"""Label maps that viewers submit: their values take the meaning that the model gives them.

A viewer numbers its segments as it likes and sends their names along (`label_info`). What is kept
has the values of the modality, so that training and scoring never take one organ for another.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.alignment import check_alignment
from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.label_values import looked_up, values_in
from esp_medsam_app.data.names import label_map_suffix
from esp_medsam_app.data.nrrd_header import nrrd_texts
from esp_medsam_app.data.writing import writable_suffix, write_label_map
from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Modality
from esp_medsam_app.server.reading import read_grid, read_label_map

BACKGROUND = "background"

logger = logging.getLogger(__name__)


class SubmittedLabels:
    """Checks and renumbers what is submitted; the `prepare` of `SafeDatastore`.

    Args:
        models: the modality of each model, by the model's name.
        read: the modality that an image is known to be of, if it is.
        numberings: the labels of models that are of no single modality, likewise: what values
            without names mean.
        grid_of: the grid of an image; none if it cannot be known.
    """

    def __init__(
        self,
        models: Callable[[], Mapping[str, Modality]],
        read: Callable[[Path], str | None] = lambda image: None,
        numberings: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
        grid_of: Callable[[Path], Grid | None] | None = None,
    ) -> None:
        self.models = models
        self._read = read
        self._numberings = numberings
        self._grid_of = grid_of or _grid_of

    @contextmanager
    def __call__(
        self, label: Path, image: Path, info: Mapping[str, Any]
    ) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The file to keep and its info, for the time of a `with` block.

        The file is the very one that came, unless its values change or it has to be put on the
        image's grid. With a modality, `modality` is its name, and `label_info` gets its labels in
        their order (`name`, `idx` the voxel value), and what the client had said of them; what it
        had sent is `submitted_label_info` where values changed. The modality is `info["model"]`'s,
        or else the only one that has all the names. Where several have them, or nothing is drawn,
        it is the one that the image is of, as the model that reads it from the image found.

        Raises:
            InputError: not a label map, not on the image's grid, values without a name, or names
                that the model does not know.
        """
        grid = self._grid_of(image)
        given = read_label_map(label, grid)
        if grid is not None:
            check_alignment(given.grid, grid)
        kept, info = self._renumbered(given, image, info, _header_names(label))
        moved = grid is not None and given.grid is grid
        if kept is given.voxels and not moved:
            yield label, info
            return
        with tempfile.TemporaryDirectory(prefix="esp_medsam_") as folder:
            grid = grid or given.grid
            suffix = writable_suffix(label)
            if suffix is None or (suffix == ".png" and len(grid.shape) != 2):
                suffix = label_map_suffix(grid)
            yield write_label_map(Path(folder) / f"label{suffix}", kept, grid), info

    def _renumbered(
        self, given: MedicalImage, image: Path, info: Mapping[str, Any], certain: dict[int, str]
    ) -> tuple[NDArray[np.integer], dict[str, Any]]:
        """Voxels (the very array if nothing changes) and info to keep."""
        models = self.models()
        entries = _entries(info.get("label_info"))
        readings = [certain] if certain else _readings(entries)
        numbering = self._numberings().get(str(info.get("model")))
        if numbering and not readings:
            readings = [{value: name for name, value in numbering.items()}]
        used = _used(given.voxels)
        modality = models.get(str(info.get("model"))) or self._by_names(readings, used)
        if modality is None and readings:
            modality = self._by_image(image, info, readings, used)
        labels = modality.labels if modality is not None else {}
        names = _chosen(readings, used, labels) if readings else _own_names(labels, used)
        if modality is None:
            return given.voxels, _as_it_came(info, entries, names, used)
        voxels = renumber(given.voxels, names, labels)
        changed = voxels is not given.voxels and not np.array_equal(voxels, given.voxels)
        told = {match_name(entry["name"], labels): entry for entry in entries}
        listed = [
            {**told.get(name, {}), "name": name, "idx": value} for name, value in labels.items()
        ]
        result = {**info, "label_info": listed, "modality": modality.name}
        if changed and entries:
            result["submitted_label_info"] = info["label_info"]
            logger.info("Renumbered a label map of %s: %s", modality.name, names)
        return (voxels if changed else given.voxels), result

    def _by_names(
        self, readings: Sequence[Mapping[int, str]], used: Sequence[int]
    ) -> Modality | None:
        """The modality of all names; else of those in use: Slicer sends empty segments' too."""
        modalities = list(self.models().values())
        everything = {name for names in readings for name in names.values()}
        return modality_of_names(everything, modalities) or modality_of_names(
            _in_use(readings, used), modalities
        )

    def _by_image(
        self,
        image: Path,
        info: Mapping[str, Any],
        readings: Sequence[Mapping[int, str]],
        used: Sequence[int],
    ) -> Modality | None:
        """The modality that the image is of, if it has the names in use."""
        name = told_modality(info) or self._read(image)
        modality = next((m for m in self.models().values() if m.name == name), None)
        if modality is None:
            return None
        found = (_target(used_name, modality.labels) for used_name in _in_use(readings, used))
        return None if None in found else modality


def renumber(
    voxels: NDArray[np.integer], names: Mapping[int, str], labels: Mapping[str, int]
) -> NDArray[np.integer]:
    """A label map in the values of a model.

    Args:
        voxels: label numbers, any shape; 0 is background.
        names: what each number stands for; `background` may be one.
        labels: values by name. Names are compared exactly; else letter case does not count, and
            spaces, hyphens and underscores are alike.

    Returns:
        uint8, or uint16 where a value is above 255; of the same shape.

    Raises:
        InputError: numbers in use that have no name, or whose name is none of the labels.
    """
    used = _used(voxels)
    unnamed = [str(value) for value in used if value not in names]
    if unnamed:
        raise InputError(
            f"the label map has voxels of value {', '.join(unnamed)}, for which there is no name",
            remedy="Name each value in label_info",
        )
    targets = {value: _target(names[value], labels) for value in used}
    unknown = [f"{names[value]!r}" for value, target in targets.items() if target is None]
    if unknown:
        raise InputError(
            f"the model has no label {', '.join(unknown)}",
            remedy=f"Its labels: {', '.join(labels)}. Rename the segment or remove it",
        )
    if all(value == target for value, target in targets.items()) and voxels.dtype == np.uint8:
        return voxels
    table = np.zeros(max(used, default=0) + 1, np.uint16)
    for value, target in targets.items():
        table[value] = target
    return looked_up(table.astype(np.uint8 if table.max() <= 255 else np.uint16), voxels)


def match_name(name: str, labels: Mapping[str, int]) -> str | None:
    """The label that a viewer's name means; None if there is none, or more than one."""
    if name in labels:
        return name
    alike = [label for label in labels if simple_name(label) == simple_name(name)]
    return alike[0] if len(alike) == 1 else None


def simple_name(name: str) -> str:
    """A name less what people write differently: letter case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def modality_of_names(names: set[str], modalities: Iterable[Modality]) -> Modality | None:
    """The only modality that has all these labels; None if several have, or none."""
    names = {name for name in names if simple_name(name) != BACKGROUND}
    found = {
        modality.name: modality
        for modality in modalities
        if names and all(match_name(name, modality.labels) for name in names)
    }
    return next(iter(found.values())) if len(found) == 1 else None


def told_modality(info: Mapping[str, Any]) -> str | None:
    """The modality that a label's info names: noted with it, or in the answer that it came from."""
    answer = info.get("params")
    told = info.get("modality") or (isinstance(answer, Mapping) and answer.get("modality"))
    return told if isinstance(told, str) else None


def stored_names(info: Mapping[str, Any]) -> dict[int, str]:
    """What the values of a label in the datastore stand for, by its info; empty if not told.

    Raises:
        InputError: the info is damaged.
    """
    entries = _entries(info.get("label_info"))
    if entries:
        return _readings(entries)[0]
    params = info.get("params")
    names = (params.get("label_names") if isinstance(params, Mapping) else None) or {}
    try:
        return {int(value): name for name, value in names.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InputError(
            "params.label_names: a mapping of names to whole numbers is needed"
        ) from None


def _as_it_came(
    info: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    names: Mapping[int, str],
    used: Sequence[int],
) -> dict[str, Any]:
    """The info of a label map of no modality that is known; training will read the names."""
    if not names:
        return dict(info)
    logger.warning(
        "No single modality has the labels %s: the label map is kept as it came",
        ", ".join(repr(names[value]) for value in used if value in names) or "that were sent",
    )
    if entries and names == _readings(entries)[0]:
        return dict(info)
    told = {entry["name"]: entry for entry in entries}
    listed = [{**told.get(name, {}), "name": name, "idx": value} for value, name in names.items()]
    return {**info, "label_info": listed, "submitted_label_info": info.get("label_info")}


def _grid_of(image: Path) -> Grid | None:
    try:
        return read_grid(image)
    except InputError as error:
        # somebody could look at it all the same: what was drawn is not thrown away
        logger.warning("A label map is not compared with its image: %s", error)
        return None


def _entries(label_info: Any) -> list[dict[str, Any]]:
    """`label_info` as mappings with a `name` and perhaps a whole number `idx`."""
    if not label_info:
        return []
    if not isinstance(label_info, Sequence) or isinstance(label_info, str):
        raise InputError("params.label_info: a list is needed")
    entries = [{"name": e} if isinstance(e, str) else e for e in label_info]
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise InputError(f"params.label_info: {entry!r} has no name")
        idx = entry.get("idx")
        if idx is not None and (isinstance(idx, bool) or not isinstance(idx, int)):
            raise InputError(f"params.label_info: idx of {entry['name']!r} is no whole number")
    return [dict(entry) for entry in entries]


def _readings(entries: Sequence[Mapping[str, Any]]) -> list[dict[int, str]]:
    """The ways in which entries may name values, the likeliest first; none without entries.

    Without `idx`, the k-th entry names value k, as Slicer's export numbers them. `idx` says the
    value, but not always in Slicer: there it also counts segments that are not exported, while the
    voxels are numbered without them.
    """
    if not entries:
        return []
    by_place = {place: entry["name"] for place, entry in enumerate(entries, start=1)}
    values = [
        place if entry.get("idx") is None else entry["idx"]
        for place, entry in enumerate(entries, start=1)
    ]
    by_value: dict[int, str] = {}
    for value, entry in zip(values, entries, strict=True):
        if simple_name(by_value.setdefault(value, entry["name"])) != simple_name(entry["name"]):
            raise InputError(
                f"params.label_info: value {value} is both {by_value[value]!r} and "
                f"{entry['name']!r}"
            )
    # Slicer's count begins at 1 and goes up
    slicer = values[0] >= 1 and values == sorted(set(values))
    return [by_value, by_place] if slicer and by_value != by_place else [by_value]


def _chosen(
    readings: Sequence[dict[int, str]], used: Sequence[int], labels: Mapping[str, int]
) -> dict[int, str]:
    """The reading that names all values in use.

    Raises:
        InputError: two do, and contradict each other; unless one gives the model's very values,
            which is no accident.
    """
    fitting = [names for names in readings if set(used) <= set(names)] or readings[:1]
    if len(fitting) == 1 or _are_own(fitting[0], labels):
        return fitting[0]
    first, second = fitting
    for value in used:
        if simple_name(first[value]) != simple_name(second[value]):
            raise InputError(
                f"label_info is ambiguous: value {value} is {first[value]!r} by its idx, but "
                f"{second[value]!r} by the order of the segments",
                remedy="Number the segments 1, 2, 3, ... without gaps, or as the model does",
            )
    return first


def _header_names(label: Path) -> dict[int, str]:
    """What a segmentation file of Slicer itself says of its values; empty for other files."""
    if not label.name.lower().endswith(".seg.nrrd"):
        return {}
    told = {
        key: text
        for key, text in nrrd_texts(label).items()
        if re.fullmatch(r"Segment\d+_(LabelValue|Name)", key)
    }
    named = [
        (value, told[name])
        for key, value in told.items()
        if key.endswith("_LabelValue") and (name := key.replace("_LabelValue", "_Name")) in told
    ]
    for value, name in named:
        if not re.fullmatch(r"\s*\d{1,9}\s*", value):
            raise InputError(
                f"the file says that {name!r} has the value {value[:20]!r}, which is no number",
                path=label,
                remedy="Save the segmentation again",
            )
    return {int(value): name for value, name in named}


def _own_names(labels: Mapping[str, int], used: Sequence[int]) -> dict[int, str]:
    """Values that come without names are the model's; pictures mark their only label with 255."""
    if len(labels) == 1 and list(used) == [255]:
        return {255: next(iter(labels))}
    return {value: name for name, value in labels.items()}


def _are_own(names: Mapping[int, str], labels: Mapping[str, int]) -> bool:
    return bool(labels) and all(_target(name, labels) == value for value, name in names.items())


def _target(name: str, labels: Mapping[str, int]) -> int | None:
    label = match_name(name, labels)
    if label is None:
        return 0 if simple_name(name) == BACKGROUND else None
    return labels[label]


def _in_use(readings: Sequence[Mapping[int, str]], used: Sequence[int]) -> set[str]:
    """The names of the values that are drawn."""
    return {names[value] for names in readings for value in used if value in names}


def _used(voxels: NDArray[np.integer]) -> list[int]:
    return [value for value in values_in(voxels) if value]
