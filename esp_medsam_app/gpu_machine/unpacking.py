"""Unpack: files back to their places, and results into a bundle and a ledger."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.moving import put_back
from esp_medsam_app.gpu_machine.places import FIGURES, Places
from esp_medsam_app.gpu_machine.results import read_results
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.cycle_ledger import append_file
from esp_medsam_app.training.cycles import BEST, LEDGER
from esp_medsam_app.training.starting import network_of
from esp_medsam_app.weights.bundle import DESCRIPTION, load_bundle, starter_bundle_path
from esp_medsam_app.weights.integrity import check_sha256
from esp_medsam_app.weights.merging import replace_modality


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` did.

    Attributes:
        files: that were put back.
        modalities: that were put into the bundle.
        kept_out: those that the bundle has in other weights than the returned ones surpass.
        rows: that were added to the ledger.
        bundle: the bundle; none without results.
    """

    files: int
    modalities: list[str]
    kept_out: list[str]
    rows: int
    bundle: Path | None


def unpack(root: Path, results: Path | None, work: Path, take: Collection[str] = ()) -> Unpacked:
    """Put back what `pack` moved aside; with results, make a bundle of them.

    Weights replace those of the bundle that they were compared with, or come in where it has none.

    Args:
        root: of the working tree.
        results: folder that a run wrote; none to put files back only.
        work: `best` in it is the bundle that the modalities come into, made of the starter bundle
            if it is not there, and `ledger.csv` the ledger that rows are added to.
        take: modalities that come into the bundle whatever it has.

    Raises:
        InputError: files differ, or an archive is damaged.
        WeightsError: weights are damaged or do not fit.
    """
    files = put_back(root, Places(root).aside)
    if results is None:
        return Unpacked(len(files), [], [], 0, None)
    returned = read_results(results)
    if not returned and not (results / LEDGER).is_file():
        raise InputError(
            "the folder holds no results",
            path=results,
            remedy="Give the folder of weights_1.zip and ledger.csv",
        )
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "best.lock"):
        if not (work / BEST / DESCRIPTION).is_file():
            shutil.copytree(starter_bundle_path(), work / BEST, dirs_exist_ok=True)
        bundle = load_bundle(work / BEST)
        taken, kept_out = [], []
        for one in returned:
            before = bundle.description.files.get(bundle.modality_file(one.name))
            if before == one.sha256:
                continue
            if before not in (None, one.surpassed) and one.name not in take:
                kept_out.append(one.name)
                continue
            taken.append(one.name)
            modality = Modality.model_validate(one.modality)
            file = work / "returned.safetensors"
            one.extract(file)
            check_sha256(file, one.sha256)
            network = network_of(bundle, modality, file)
            bundle = replace_modality(bundle, network, modality, one.run, size=one.run.get("size"))
            file.unlink()
    rows = 0
    if (results / LEDGER).is_file():
        with FileLock(work / "ledger.lock"):
            rows = append_file(work / LEDGER, results / LEDGER)
    if (results / FIGURES).is_file():
        shutil.copyfile(results / FIGURES, work / FIGURES)
    return Unpacked(len(files), taken, kept_out, rows, bundle.path)
