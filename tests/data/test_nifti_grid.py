"""A NIfTI image and its label map lie where ITK, an independent reader here, puts the image."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp_medsam_app.data.nifti_grid import affine_of
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.data.writing import write_label_map
from esp_medsam_app.errors import InputError

SHAPE = (5, 4, 3)
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, -1.0])


@st.composite
def headers(draw: st.DrawFn) -> Any:
    """Any codes and units; qform and sform apart, equal, or of an equal or another scale."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(draw(st.sampled_from([SHAPE, SHAPE[:2], (*SHAPE, 1)])))
    header["qform_code"] = draw(st.integers(0, 4))
    header["sform_code"] = draw(st.integers(0, 5))
    header["xyzt_units"] = draw(st.sampled_from([0, 1, 2, 3, 8 + 2, 16 + 3]))
    sizes = [draw(st.floats(0.25, 9, width=32)) for _ in range(3)]
    header["pixdim"][:4] = [draw(st.sampled_from([1.0, -1.0])), *sizes]
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        # a unit quaternion has a fourth part left
        header[name] = draw(numbers) / 4
    for name in ("qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = draw(st.floats(-300, 300, width=32))
    matrix = header.get_qform()
    for _ in range(draw(st.integers(0, 2))):
        change = draw(st.sampled_from(["scale", "shear", "turn", "move", "random", "flip"]))
        if change == "scale":
            matrix[:3, :3] = matrix[:3, :3] * draw(st.sampled_from([0.5, 2.0, 1.00001]))
        elif change == "shear":
            matrix[:3, 1] += matrix[:3, 0] * draw(st.sampled_from([0.3, 1e-3, 1e-5]))
        elif change == "turn":
            turn, angle = np.eye(4), draw(st.floats(-3, 3))
            turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            matrix = turn @ matrix
        elif change == "move":
            matrix[:3, 3] += draw(st.floats(-9, 9))
        elif change == "flip":
            matrix[:3, 0] *= -1
        else:
            matrix[:3, :3] = [[draw(numbers) for _ in range(3)] for _ in range(3)]
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = matrix[row]
    if draw(st.booleans()):
        header["pixdim"][0] = 0
    return header


def save(header: Any, path: Path) -> None:
    """Byte for byte: nibabel would make the fields agree."""
    header["magic"] = header.single_magic
    header["vox_offset"] = len(header.binaryblock) + 4
    shape = header.get_data_shape()
    voxels = np.arange(np.prod(shape), dtype=np.int16)
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes())


def corners(image: sitk.Image) -> np.ndarray:
    """Of the voxels' centres, in three dimensions; ITK gives a 2D image z = 0."""
    size = image.GetSize()
    ends = itertools.product(*((0.0, n - 1.0) for n in size))
    points = [image.TransformContinuousIndexToPhysicalPoint(end) for end in ends]
    # a 2D image as NRRD is a volume of one slice
    return np.array(list(dict.fromkeys((*point, 0.0)[:3] for point in points)))


@quick
@given(headers(), st.sampled_from([".nii", ".nii.gz", ".nrrd"]))
def test_where_itk_puts_it(tmp_path: Path, header: Any, suffix: str) -> None:
    source, target = tmp_path / "image.nii", tmp_path / f"labels{suffix}"
    save(header, source)
    try:
        expected = sitk.ReadImage(str(source), imageIO="NiftiImageIO")
    except RuntimeError:
        check_refused_by_itk(source, target)
        return
    image = read_image(source)
    if header["qform_code"] or header["sform_code"]:
        assert image.warnings == ()
    else:
        assert "says nothing of the patient" in image.warnings[0]
    labels = np.arange(np.prod(image.grid.shape), dtype=np.uint8).reshape(image.grid.shape)
    found = sitk.ReadImage(str(write_label_map(target, labels, image.grid)))
    assert found.GetSize()[: expected.GetDimension()] == expected.GetSize()
    want = corners(expected)
    np.testing.assert_allclose(corners(found), want, atol=1e-6 * max(1, np.abs(want).max()))
    spacing = (*expected.GetSpacing(), 1.0)[:3]
    assert np.prod(image.grid.spacing) == pytest.approx(
        np.prod(spacing[: len(image.grid.shape)]), rel=1e-5
    )
    back = read_label_map(target, image.grid)
    assert np.array_equal(back.voxels, labels)


def check_refused_by_itk(source: Path, target: Path) -> None:
    """It is refused, or written back with the very header and said so."""
    try:
        image = read_image(source)
    except InputError:
        return
    assert "ITK" in image.warnings[0]
    target = target.with_name("labels.nii")
    write_label_map(target, np.zeros(image.grid.shape, np.uint8), image.grid)
    before, after = nib.load(source).header, nib.load(target).header
    for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(before[name], after[name])
    np.testing.assert_array_equal(before["pixdim"][1:4], after["pixdim"][1:4])


def simple(**fields: Any) -> Any:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header["pixdim"][1:4] = 2, 3, 4
    for name, value in fields.items():
        header[name] = value
    return header


def test_no_affine_is_itks_identity(tmp_path: Path) -> None:
    save(simple(), tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert np.array_equal(image.grid.affine, np.diag([-2.0, -3.0, 4.0, 1.0]))
    assert "qform_code and sform_code are 0" in image.warnings[0]


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_units_are_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    header = simple()
    header.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    header.set_xyzt_units(unit)
    save(header, tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii").grid.spacing == pytest.approx(
        (2 * factor, 3 * factor, 4 * factor)
    )


def test_a_sheared_sform_beside_a_good_qform(tmp_path: Path) -> None:
    header = simple()
    sheared = np.diag([2.0, 3.0, 4.0, 1.0])
    sheared[0, 1] = 1
    header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    header.set_sform(sheared, 2)
    save(header, tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert image.warnings == ()
    np.testing.assert_allclose(image.grid.affine, np.diag([2.0, 3.0, 4.0, 1.0]), atol=1e-6)


def test_a_sheared_sform_alone_is_told(tmp_path: Path) -> None:
    header = simple()
    sheared = np.diag([2.0, 3.0, 4.0, 1.0])
    sheared[0, 1] = 1
    header.set_sform(sheared, 2)
    header.set_xyzt_units("micron")
    save(header, tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert "3D Slicer, refuses its header" in image.warnings[0]
    np.testing.assert_allclose(image.grid.affine[:3], sheared[:3] / 1000)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_numbers_that_are_none_do_not_reach_itk(value: float, tmp_path: Path) -> None:
    """With some of them ITK computes without an end."""
    for name in ("srow_z", "pixdim", "qoffset_x", "quatern_b"):
        header = simple(qform_code=1, sform_code=1)
        header["srow_x"][0], header["srow_y"][1], header["srow_z"][2] = 2, 3, 4
        if header[name].ndim:
            header[name][2] = value
        else:
            header[name] = value
        save(header, tmp_path / "a.nii")
        try:
            assert "refuses its header" in read_image(tmp_path / "a.nii").warnings[0]
        except InputError:
            continue


def test_what_does_not_count_may_hold_anything(tmp_path: Path) -> None:
    header = simple(sform_code=1, xyzt_units=7)
    header["srow_x"][0], header["srow_y"][1], header["srow_z"][2] = 2, 3, 4
    header["quatern_b"] = header["qoffset_x"] = np.inf
    save(header, tmp_path / "a.nii")
    image = read_image(tmp_path / "a.nii")
    assert np.array_equal(image.grid.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert image.warnings == ()


def test_nifti_2_follows_the_rule_of_nifti_1(tmp_path: Path) -> None:
    """This ITK reads NIfTI-1 alone."""
    header = simple()
    header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    header.set_sform(np.diag([3.0, 3.0, 3.0, 1.0]), 2)
    second = nib.Nifti2Header.from_header(header)
    second["sform_code"], second["srow_x"][0] = 2, 3
    second["pixdim"][1:4] = 2, 3, 4
    # more than NIfTI-1 can count
    affine, warning = affine_of(second, (40000, 4, 3))
    np.testing.assert_allclose(affine, affine_of(header, SHAPE)[0], atol=1e-6)
    assert warning is not None
    assert "NIfTI-2" in warning


def test_a_host_without_itk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on what is beyond dispute, and refuses the rest."""
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    header = simple()
    matrix = np.diag([-2.0, -3.0, 4.0, 1.0])
    header.set_qform(matrix, 1)
    header.set_sform(matrix, 1)
    np.testing.assert_allclose(affine_of(header, SHAPE)[0], matrix, atol=1e-6)
    for name, value in (("sform_code", 0), ("xyzt_units", 2)):
        header[name] = value
        np.testing.assert_allclose(affine_of(header, SHAPE)[0], matrix, atol=1e-6)
    header["sform_code"] = 1
    header["srow_x"][3] = 5
    with pytest.raises(InputError, match=r"SimpleITK.*not installed"):
        affine_of(header, SHAPE)
    with pytest.raises(InputError, match="do not agree"):
        affine_of(simple(), SHAPE)
