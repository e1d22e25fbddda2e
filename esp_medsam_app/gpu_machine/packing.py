"""Pack: what a run needs into one folder, and aside what the machine does not need."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.dataset.splits_on_disk import LeftOut, cases_of_split, judged_cases
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import check_references
from esp_medsam_app.gpu_machine.moving import move_aside, put_back, stays, tracked, unknown_to_git
from esp_medsam_app.gpu_machine.places import (
    FOLDER,
    LARGEST_LOAD,
    MIB,
    Packed,
    Places,
    write_manifest,
)
from esp_medsam_app.gpu_machine.sheets import read_sheets, write_sheets
from esp_medsam_app.modalities import catalogue, get_modality
from esp_medsam_app.training.campaign import judge
from esp_medsam_app.training.cycles import BEST, SIZES, read_judged
from esp_medsam_app.training.record import described_data
from esp_medsam_app.training.starting import network_of
from esp_medsam_app.training.surroundings import Surroundings
from esp_medsam_app.weights.bundle import (
    DESCRIPTION,
    Bundle,
    controller_file,
    load_bundle,
    starter_bundle_path,
)
from esp_medsam_app.weights.carried import carry_bundle

# longest side of a slice of one tile, pixels
SIDE = 320
# of WebP, and slices of a volume: what brings all training data into half of the load
QUALITY, MOST_SLICES = 70, 24
# What the training imports and the machine lacks.
_WHEELS = (
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "segment-anything",
)  # fmt: skip
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What would travel, bytes.

    Attributes:
        tree: tracked files that stay.
        unknown: files that git neither knows nor ignores.
        parts: of the carried folder, by name.
    """

    tree: int
    unknown: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return self.tree + self.unknown + sum(self.parts.values())

    def largest(self) -> str:
        """The parts, the largest first."""
        named = {"tracked files": self.tree, "files that git does not know": self.unknown}
        ordered = sorted((named | self.parts).items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / MIB:.1f} MiB" for name, size in ordered if size)


@dataclass(frozen=True)
class Options:
    """How to pack.

    Attributes:
        modalities: names, in the order in which their weights are taken along while there is room.
        left_out: cases that are not used.
        quality: of the slices, 1 to 100.
        side: longest side of a slice of one tile, pixels.
        most: slices of a case.
        limit: of the load, bytes.
        wheels: carry those of Python 3.12 that the machine lacks.
        judge: judge weights that do not fit, on the slices that travel, so that what is trained
            there can be compared with them: minutes of a CPU.
    """

    modalities: Sequence[str]
    left_out: LeftOut
    quality: int = QUALITY
    side: int = SIDE
    most: int = MOST_SLICES
    limit: int = LARGEST_LOAD
    wheels: bool = True
    judge: bool = False


def pack(root: Path, data: Path, work: Path | None, options: Options, tell: Tell) -> Load:
    """Fill the carried folder and move aside what does not travel.

    Args:
        root: of the working tree.
        data: folder of `<modality>/<data set>/<split>/{images,labels}`.
        work: of a background training, whose best weights are the start; else the starter's.
        options: how to pack.
        tell: called with what is being done.

    Raises:
        InputError: a case that cannot be used, no case at all, or the load is too large: then
            nothing is aside.
    """
    places = Places(root)
    put_back(root, places.aside)
    own = work is not None and (work / BEST / DESCRIPTION).is_file()
    bundle = load_bundle(work / BEST if work is not None and own else starter_bundle_path())
    partial = places.folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    packed = _slices(data, places, partial, options, tell)
    if options.wheels:
        tell("wheels")
        _fetch_wheels(places.folder / "wheels")
        shutil.copytree(places.folder / "wheels", partial / "wheels")
    carry_bundle(bundle, partial / "bundle", [])
    room = options.limit - _load(root, partial).total
    started = _fitting(bundle, list(packed), room)
    carry_bundle(bundle, partial / "bundle", started)
    for name in packed:
        packed[name] = _told(packed[name], name, bundle, places, name in started, options, tell)
    write_manifest(partial, packed)
    load = _load(root, partial)
    if load.total > options.limit:
        shutil.rmtree(partial)
        raise InputError(
            f"the load is {load.total / MIB:.1f} MiB, above {options.limit / MIB:.0f} MiB: "
            + load.largest(),
            path=root / FOLDER,
            remedy="Name fewer --modalities, or give a lower --quality or --most",
        )
    shutil.rmtree(places.carried, ignore_errors=True)
    partial.rename(places.carried)
    move_aside(root, places.aside)
    return load


def _slices(
    data: Path, places: Places, partial: Path, options: Options, tell: Tell
) -> dict[str, Packed]:
    """Archives of all modalities that have training and validation cases; what is told of each."""
    packed: dict[str, Packed] = {}
    (partial / "slices").mkdir()
    for name in options.modalities:
        if name not in catalogue():
            tell(f"{name}: no such modality in the catalogue")
            continue
        modality = get_modality(name)
        folders, train = cases_of_split(data, modality, "train", options.left_out)
        _, val = cases_of_split(data, modality, "val", options.left_out)
        if not train or not val:
            tell(f"{name}: no training or no validation cases")
            continue
        check_references([*train, *val], modality)
        size = 0
        for split, pairs in (("train", train), ("val", judged_cases(val, modality))):
            cache = prepare_slices(
                places.folder / "slices" / name / split, pairs, modality, tile=options.side
            )
            archive = places.folder / "sheets" / f"{name}_{split}.zip"
            write_sheets(cache, archive, quality=options.quality, most=options.most)
            shutil.copyfile(archive, partial / "slices" / archive.name)
            size += archive.stat().st_size
        data_told = described_data({name: train}, {name: folders})[name]
        packed[name] = Packed(len(train), data_told, start=False, weights=None, judged=None)
        tell(
            f"{name}: {len(train)} cases to learn from, {len(val)} to judge on, "
            f"{size / MIB:.1f} MiB"
        )
    if not packed:
        raise InputError(
            "no modality has training and validation cases",
            path=data,
            remedy="Give a folder of <modality>/<data set>/<split>/{images,labels}",
        )
    return packed


def _told(
    one: Packed,
    name: str,
    bundle: Bundle,
    places: Places,
    start: bool,
    options: Options,
    tell: Tell,
) -> Packed:
    """What is told of a modality, once it is known which weights travel."""
    weights = bundle.description.files.get(controller_file(name))
    judged = None
    if weights is not None and not start and options.judge:
        tell(f"{name}: judging its weights, which do not fit")
        judged = _judged(name, weights, bundle, places)
    return replace(one, start=start, weights=weights, judged=judged)


def _judged(name: str, weights: str, bundle: Bundle, places: Places) -> dict[str, Any]:
    """Dice of a modality of the bundle on the slices that travel; kept for next time."""
    modality = bundle.modality(name)
    folder = places.folder / "judged" / name
    cache = read_sheets(places.folder / "sheets" / f"{name}_val.zip", folder / "slices")
    file = folder / "judged.json"
    of = f"{weights}/{cache.origin}"
    known = read_judged(file, of)
    if known is None:
        known = judge(
            network_of(bundle, modality), cache, modality, sizes=SIZES, place=Surroundings(folder)
        )
        with written_whole(file) as partial:
            partial.write_text(json.dumps({"weights": of, "dice": known}), encoding="utf-8")
    return {str(size): dict(dice) for size, dice in known.items()}


def _fitting(bundle: Bundle, names: Sequence[str], room: int) -> list[str]:
    """Modalities of the bundle whose weights fit, the first ones first."""
    fitting = []
    for name in names:
        if name not in bundle.modalities:
            continue
        size = bundle.file(controller_file(name)).stat().st_size
        # what the description says of it
        room -= size + 2**14
        if room < 0:
            break
        fitting.append(name)
    return fitting


def _fetch_wheels(folder: Path) -> None:
    """Wheels for Python 3.12 of the versions that are installed here; kept for next time."""
    wanted = [f"{name}=={version(name)}" for name in _WHEELS]
    mark = folder / "wanted.txt"
    if mark.is_file() and mark.read_text(encoding="utf-8").split() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--python-version", "3.12", "--implementation", "cp", *platforms,
            "--dest", str(folder), *wanted,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise InputError(
            f"pip cannot fetch the wheels that the machine lacks ({reason})",
            path=folder,
            remedy="Check the network and pip's index, or give --no-wheels",
        )
    mark.write_text("\n".join(wanted), encoding="utf-8")


def _load(root: Path, carried: Path) -> Load:
    parts = {
        entry.name: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
        if entry.is_dir()
        else entry.stat().st_size
        for entry in carried.iterdir()
    }
    sizes = {file: (root / file).lstat().st_size for file in tracked(root) if stays(file)}
    unknown = [(root / file).lstat().st_size for file in unknown_to_git(root)]
    return Load(sum(sizes.values()), sum(unknown), parts)
