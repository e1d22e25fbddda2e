"""Small files take no gigabytes: measured in a process of its own, with all that it starts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support.bombs import BOMBS, LARGE, wide_label

MOST_MB = 300
PROBE = Path(__file__).parents[1] / "support" / "memory_probe.py"


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bombs")
    found = {}
    for name, (suffix, make) in BOMBS.items():
        found[name] = folder / f"{name}{suffix}"
        make(found[name])
        # small enough to be sent by the dozen, and as large as they have to be
        assert found[name].stat().st_size < 8e6
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), path)
    return path


def probed(
    function: str, shape: Sequence[int], small: Path, files: Sequence[Path]
) -> list[tuple[float, str]]:
    arguments = [function, json.dumps(shape), str(small), *map(str, files)]
    done = subprocess.run(
        [sys.executable, str(PROBE), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("function", ["image", "label"])
def test_small_files_take_no_more_than_they_may(
    function: str, bombs: dict[str, Path], small: Path
) -> None:
    *found, (left, _) = probed(function, (4, 4, 4), small, list(bombs.values()))
    told = dict(zip(bombs, found, strict=True))
    too_large = {name: one for name, one in told.items() if one[0] > MOST_MB}
    assert too_large == {}
    # what is refused by its header takes next to nothing
    if function == "label":
        by_shape = {name for name, (_, problem) in told.items() if "its image has" in problem}
        assert by_shape >= set(BOMBS) - {"nifti extension", "deflated dicom", "gif"}
        assert max(told[name][0] for name in by_shape) < 100
    assert left < 60


def test_a_label_map_takes_no_more_than_twice_its_image(small: Path, tmp_path: Path) -> None:
    """64 bits a voxel are gathered part by part."""
    file = tmp_path / "wide.nii.gz"
    wide_label(file)
    (peak, told), (left, _) = probed("label", LARGE, small, [file])
    assert told == f"uint8 {LARGE}"
    twice = 2 * math.prod(LARGE) * 2 / 1e6
    assert peak < max(MOST_MB, twice)
    assert left < 60
