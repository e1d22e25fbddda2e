"""Pack, run and unpack, as one does with a borrowed machine; that machine has no image software."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.bare_machine import MISSING, site_without
from support.small_starter import small_starter
from support.working_tree import is_whole

import esp_medsam_app
from esp_medsam_app.errors import InputError
from esp_medsam_app.gpu_machine.packing import Options, pack
from esp_medsam_app.gpu_machine.places import (
    LARGEST_RESULT,
    MIB,
    Packed,
    Places,
    read_manifest,
)
from esp_medsam_app.gpu_machine.results import write_results
from esp_medsam_app.gpu_machine.unpacking import unpack
from esp_medsam_app.training.cycles import SIZES
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.bundle import Bundle, starter_bundle_path
from esp_medsam_app.weights.integrity import sha256_of
from esp_medsam_app.weights.merging import replace_modality

from .conftest import MODALITIES

PROJECT = Path(esp_medsam_app.__file__).parents[1]
SCRIPT = PROJECT / "scripts" / "train_on_gpu.sh"
RECIPE = """
views: null
cached_stage: 0
decoder_steps: 0
joint_steps: 2
joint_batch: 2
size_stages: [{until: 1, sizes: [32]}]
"""
LEFT_OUT = {("dermoscopy", "val"): ["twin"]}


def packing(**changes: object) -> Options:
    return Options(modalities=MODALITIES, left_out=LEFT_OUT, wheels=False, **changes)  # type: ignore[arg-type]


def silent(text: str) -> None:
    """Tells nobody."""


def test_a_load_above_the_limit_is_refused_with_its_parts(tree: Path, data: Path) -> None:
    with pytest.raises(InputError, match=r"above 5 MiB: bundle 1\d\.\d MiB.*--quality"):
        pack(tree, data, None, packing(limit=5 * MIB), silent)
    assert is_whole(tree)


def test_data_without_cases_are_refused(tree: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match="no modality has training and validation cases"):
        pack(tree, tmp_path, None, packing(), told.append)
    assert told[0] == "dermoscopy: no training or no validation cases"
    assert is_whole(tree)


def test_weights_that_do_not_fit_stay_at_home(tree: Path, data: Path) -> None:
    load = pack(tree, data, None, packing(limit=20 * MIB, judge=True), silent)
    carried = Places(tree).carried
    started = load_bundle(carried / "bundle").modalities
    assert not started
    assert load.total < 20 * MIB
    # judged on the slices that travel, they are compared with all the same
    known, new = read_manifest(carried).values()
    starter = load_bundle().description.files["controllers/dermoscopy.safetensors"]
    assert (known.surpassed, new.surpassed) == (starter, None)
    assert known.judged is not None
    assert {size: list(dice["site"]) for size, dice in known.judged.items()} == {
        str(size): ["case0", "case1"] for size in SIZES
    }
    shutil.rmtree(carried)
    pack(tree, data, None, packing(), silent)
    bundle = load_bundle(carried / "bundle")
    bundle.verify()
    assert list(bundle.modalities) == ["dermoscopy"]
    packed = read_manifest(carried)
    assert [one.start for one in packed.values()] == [True, False]
    assert [one.surpassed for one in packed.values()] == [starter, None]
    unpack(tree, None, tree / "none")
    assert is_whole(tree)


@pytest.mark.e2e
def test_there_and_back(tree: Path, data: Path, tmp_path: Path) -> None:
    places = Places(tree)
    # twice: what is aside is put back first
    for _ in range(2):
        pack(tree, data, None, packing(), silent)
    assert not (tree / "docs" / "page.md").exists()

    script = tree / "scripts" / SCRIPT.name
    shutil.copyfile(SCRIPT, script)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    output = tmp_path / "out"
    site = site_without(tmp_path / "site", MISSING)
    done = subprocess.run(
        [
            "bash", str(script), "run", "--minutes", "3", "--device", "cpu", "--views", "4",
            "--recipe", str(recipe), "--sizes", "32",
        ],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(output),
             "PYTHONPATH": f"{site}:{PROJECT}"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 modalities trained" in done.stdout
    script.unlink()

    figures = json.loads((output / "figures.json").read_text())
    assert set(figures) == {"machine", "training_speed", "inference", *MODALITIES}
    assert figures["training_speed"]["plain"]["32"]["views_per_second"] > 0
    assert figures["inference"]["volume"]["slices_per_second"] > 0
    assert figures["mr_abdomen"]["steps"] == 2
    assert max(file.stat().st_size for file in output.iterdir()) <= LARGEST_RESULT
    with (output / "ledger.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["modality"], row["site"], row["cases"]) for row in rows] == [
        ("dermoscopy", "site", "2"),
        ("mr_abdomen", "site", "2"),
    ]
    kept = [row["modality"] for row in rows if float(row["kept_share"])]

    work = tmp_path / "work"
    first = unpack(tree, output, work)
    assert not first.kept_out
    assert is_whole(tree)
    assert first.modalities == kept
    assert first.rows == len(rows)
    again = unpack(tree, output, work)
    assert (again.rows, again.modalities, again.kept_out) == (0, [], [])
    bundle = load_bundle(work / "best")
    bundle.verify()
    assert set(bundle.modalities) == set(load_bundle().modalities) | set(kept)
    run_there = load_bundle(places.work / "best")
    for name in kept:
        # bit by bit what was judged there
        assert weights(bundle, name) == weights(run_there, name)
        bundle.load_network([name])


def test_weights_that_were_not_compared_are_kept_out(tree: Path, tmp_path: Path) -> None:
    """The bundle at home may be better, or may have become so since."""
    bundle = load_bundle(small_starter(tmp_path / "work" / "best"))
    name = "microscopy_nuclei"
    here = bundle.description.files[bundle.modality_file(name)]
    trained = shutil.copytree(bundle.path, tmp_path / "there" / "best")
    network = bundle.load_network()
    with torch.no_grad():
        network.queries[name].tokens.weight.mul_(1.5)
    there = replace_modality(load_bundle(trained), network, bundle.modality(name), {"data": {}})
    for surpassed, taken in ((None, []), ("other", []), (here, [name])):
        told = Packed(1, {}, start=True, weights=surpassed, judged=None)
        write_results(tmp_path / "there", bundle, {name: told}, tmp_path / "out")
        for take in ([], [name]):
            work = shutil.copytree(tmp_path / "work", tmp_path / f"{surpassed}{len(take)}")
            done = unpack(tree, tmp_path / "out", work, take)
            assert done.modalities == (taken or take)
            assert done.kept_out == ([] if done.modalities else [name])
            now = weights(load_bundle(work / "best"), name)
            assert now == (weights(there, name) if done.modalities else here)


def weights(bundle: Bundle, name: str) -> str:
    return sha256_of(bundle.file(bundle.modality_file(name)))


def test_results_that_are_none_are_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="the folder holds no results"):
        unpack(tree, tmp_path / "out", tmp_path / "work")
    (tmp_path / "out" / "weights_1.zip").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"weights_1\.zip: the archive is damaged"):
        unpack(tree, tmp_path / "out", tmp_path / "work")
    assert starter_bundle_path().is_dir()
