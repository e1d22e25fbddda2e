"""Names of cases and of outputs: nothing of a name is lost, and no two outputs share one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.names import case_name, label_map_suffix, unique_names


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("scan.nii.gz", "scan"),
        ("scan.NII.GZ", "scan"),
        ("scan.nii", "scan"),
        ("patient.07.nii.gz", "patient.07"),
        ("label.seg.nrrd", "label"),
        ("photo.JPEG", "photo"),
        ("1.2.840.113", "1.2.840.113"),
        ("IM0001", "IM0001"),
        (".png", ".png"),
    ],
)
def test_only_the_image_suffix_is_cut(file: str, name: str) -> None:
    assert case_name(Path("some.png") / file) == name


def test_a_folder_keeps_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "series.png"
    folder.mkdir()
    assert case_name(folder) == "series.png"
    monkeypatch.chdir(folder)
    assert case_name(".") == "series.png"


def unique(*files: str) -> list[str]:
    paths = [Path(file) for file in files]
    return unique_names([case_name(path) for path in paths], paths)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("/d/a.png", "/d/b.png"), ["a", "b"]),
        (("/d/a.png", "/d/a.nii.gz", "/d/b.png"), ["a_png", "a_nii_gz", "b"]),
        (("/d/x/a.png", "/d/y/a.png"), ["x_a", "y_a"]),
        (("/d/x/s/a.png", "/d/y/s/a.png"), ["x_s_a", "y_s_a"]),
        # letter case does not tell files apart everywhere
        (("/d/x/A.png", "/d/y/a.png"), ["x_A", "y_a"]),
        # the name made up for one exists already
        (("/d/a.png", "/d/a.jpg", "/d/a_png.nii"), ["a_png_2", "a_jpg", "a_png"]),
        (("/d/x/a.png", "/d/x/a.jpg", "/d/y/a.jpg"), ["x_a_png", "x_a_jpg", "y_a_jpg"]),
    ],
)
def test_clashing_names(files: tuple[str, ...], names: list[str]) -> None:
    assert unique(*files) == names


PATHS = st.builds(
    lambda folders, stem, suffix: "/" + "/".join([*folders, stem + suffix]),
    st.lists(st.sampled_from(["x", "y", "x_a", "X"]), max_size=3),
    st.sampled_from(["a", "A", "a_png", "x_a", "y_a", "a_2"]),
    st.sampled_from([".png", ".jpg", ".nii.gz", ""]),
)


@given(st.lists(PATHS, min_size=1, max_size=8, unique=True))
def test_names_are_always_distinct(files: list[str]) -> None:
    names = unique(*files)
    assert len({name.casefold() for name in names}) == len(files)
    for file, name in zip(files, names, strict=True):
        assert case_name(file) in name


@pytest.mark.parametrize(
    ("shape", "spacing", "patient", "suffix"),
    [
        ((4, 5), 1.0, False, ".png"),
        # an X-ray's pixel size would be lost in a PNG
        ((4, 5), 0.2, False, ".nii.gz"),
        ((4, 5), 1.0, True, ".nii.gz"),
        ((4, 5, 6), 1.0, False, ".nii.gz"),
        ((4, 5, 6), 1.0, True, ".nii.gz"),
    ],
)
def test_suffix_of_label_maps(
    shape: tuple[int, ...], spacing: float, patient: bool, suffix: str
) -> None:
    affine = np.diag([spacing, spacing, 1.0, 1.0])
    assert label_map_suffix(Grid(shape, affine, patient)) == suffix
