"""A working tree of a few files, and two modalities of a few pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.discs import draw_discs
from support.working_tree import make_tree

MODALITIES = ("dermoscopy", "mr_abdomen")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Discs as skin lesions, which the starter bundle knows, and as livers in MR, new to it."""
    folder = tmp_path / "data"
    for seed, name in enumerate(MODALITIES):
        draw_discs(folder / name / "site" / "train", 3, seed)
        draw_discs(folder / name / "site" / "val", 2, seed + 10)
    # a case whose twin is in the training split
    val = folder / "dermoscopy" / "site" / "val"
    for part in ("images", "labels"):
        shutil.copyfile(val / part / "case0.png", val / part / "twin.png")
    return folder
