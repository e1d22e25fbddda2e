"""Which cases of a data folder are trained and judged on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.discs import DISC, draw_discs

import esp_medsam_app
from esp_medsam_app.dataset import prepare_slices
from esp_medsam_app.dataset.splits_on_disk import (
    VAL_VOLUMES,
    cases_of_split,
    judged_cases,
    read_left_out,
)
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair, find_pairs


def test_cases_of_all_data_sets_but_those_left_out(tmp_path: Path) -> None:
    draw_discs(tmp_path / "disc" / "one" / "train", 2)
    draw_discs(tmp_path / "disc" / "two" / "train", 1, seed=1)
    left_out = {("disc", "train"): ["one_case1"], ("disc", "val"): ["case0"]}
    _, every = cases_of_split(tmp_path, DISC, "train", {})
    names = [pair.name for pair in every]
    left_out["disc", "train"] = [names[0]]
    folders, kept = cases_of_split(tmp_path, DISC, "train", left_out)
    assert [folder.parent.name for folder in folders] == ["one", "two"]
    assert [pair.name for pair in kept] == names[1:]
    assert cases_of_split(tmp_path, DISC, "val", left_out) == ([], [])


def test_few_volumes_and_all_pictures_are_judged() -> None:
    volumes = [CasePair(str(n), Path(f"a/{n}.nii.gz"), Path(f"b/{n}.nii.gz")) for n in range(20)]
    slices = [CasePair(f"s{n}", Path(f"c/{n}.png"), Path(f"d/{n}.png")) for n in range(20)]
    three = DISC.model_copy(update={"dimension": 3})
    assert judged_cases(volumes + slices, three) == volumes[:VAL_VOLUMES] + slices
    assert len(judged_cases(volumes, DISC)) == 20


def test_the_list_of_left_out_cases(tmp_path: Path) -> None:
    listed = Path(esp_medsam_app.__file__).parents[1] / "scripts" / "left_out.txt"
    assert "23_A" in read_left_out(listed)["fundus_vessels", "val"]
    (tmp_path / "list.txt").write_text("# why\n\ndisc val case0\ndisc val\n")
    with pytest.raises(InputError, match=r"list\.txt: line 4 has 2 words"):
        read_left_out(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        read_left_out(tmp_path / "none.txt")


def test_a_blank_slice_without_a_label_is_left_out_of_a_cache(tmp_path: Path) -> None:
    """As beyond the end of a scan: there is nothing to see, and inference refuses it."""
    folder = draw_discs(tmp_path / "site" / "train", 3)
    for part in ("images", "labels"):
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(folder / part / "case1.png")
    cache = prepare_slices(tmp_path / "cache", find_pairs([folder]), DISC, tile=32)
    assert cache.case_names == ["case0", "case2"]
    assert [entry.case for entry in cache.slices] == [0, 1]
    # with a label it is a mistake, and named
    Image.fromarray(np.ones((48, 48), np.uint8)).save(folder / "labels" / "case1.png")
    with pytest.raises(InputError, match=r"images/case1\.png: all voxels have the value 0"):
        prepare_slices(tmp_path / "cache", find_pairs([folder]), DISC, tile=32)
