"""Labels painted in the input space come back voxel for voxel, whatever the grid and the format."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from support.dicom_series import write_series

from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.reading import read_image, read_label_map
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.writing import write_label_map

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = [index for index in range(3) if index != axis]
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


@st.composite
def affines(draw: st.DrawFn, shear: bool = False) -> NDArray[np.float64]:
    """Identity, flipped, permuted, oblique, anisotropic (and sheared) grids."""
    angle = st.sampled_from([0.0, np.pi / 2, np.pi]) | st.floats(-3.1, 3.1)
    matrix = rotation((draw(angle), draw(angle), draw(angle)))
    matrix = matrix[:, draw(st.permutations([0, 1, 2]))]
    matrix = matrix * [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    if shear and draw(st.booleans()):
        matrix = matrix @ np.array([[1, 0, 0], [0, 1, draw(st.floats(-0.4, 0.4))], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = matrix * [draw(st.floats(0.3, 8)) for _ in range(3)]
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


shapes = st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 5))
seeds = st.integers(0, 2**31)


def random_labels(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 5, shape).astype(np.uint8)


def through_slices(labels: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """What a network that copies its input would give: cut, then put together again."""
    view = SliceView.of(grid)
    slices = np.ascontiguousarray(view.slices(labels))
    assert slices.ndim == 3
    return np.ascontiguousarray(view.restore(slices))


@quick
@given(affines(shear=True), shapes, seeds, st.sampled_from([".nii", ".nii.gz"]))
def test_nifti(
    tmp_path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], seed: int, suffix: str
) -> None:
    painted = random_labels(shape, seed)
    source = tmp_path / f"image{suffix}"
    nib.save(nib.Nifti1Image(painted.astype(np.int16), affine), source)
    image = read_image(source)
    target = tmp_path / f"labels{suffix}"
    write_label_map(target, through_slices(image.voxels.astype(np.uint8), image.grid), image.grid)
    written, original = nib.load(target), nib.load(source)
    assert np.array_equal(np.asanyarray(written.dataobj), painted)
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, original.affine)
    for field in ("qform_code", "sform_code"):
        assert written.header[field] == original.header[field]
    again = read_label_map(target)
    assert np.array_equal(again.voxels, painted)
    assert np.array_equal(again.grid.affine, image.grid.affine)


@quick
@given(affines(shear=True), shapes, seeds, st.booleans())
def test_nrrd(
    tmp_path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], seed: int, compress: bool
) -> None:
    painted = random_labels(shape, seed)
    nib.save(nib.Nifti1Image(painted, affine), tmp_path / "image.nii")
    image = read_image(tmp_path / "image.nii")
    target = tmp_path / "labels.nrrd"
    write_label_map(target, through_slices(painted, image.grid), image.grid, compress)
    independent = sitk.ReadImage(str(target))
    assert np.array_equal(sitk.GetArrayFromImage(independent).T, painted)
    corner = [float(extent - 1) for extent in shape]
    expected = LPS @ image.grid.affine @ [*corner, 1]
    found = independent.TransformContinuousIndexToPhysicalPoint(corner)
    np.testing.assert_allclose(found, expected[:3], atol=1e-6)
    again = read_label_map(target)
    assert np.array_equal(again.voxels, painted)
    np.testing.assert_allclose(again.grid.affine, image.grid.affine, atol=1e-6)


@quick
@given(affines(), shapes, seeds)
def test_nifti_as_itk_sees_it(
    tmp_path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], seed: int
) -> None:
    """Image and label map are one grid to ITK too, which reads qform and sform its own way."""
    painted = random_labels(shape, seed)
    image = nib.Nifti1Image(painted.astype(np.int16), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, tmp_path / "image.nii")
    grid = read_image(tmp_path / "image.nii").grid
    write_label_map(tmp_path / "labels.nii", painted, grid)
    first, second = (sitk.ReadImage(str(tmp_path / f"{name}.nii")) for name in ("image", "labels"))
    assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
    assert first.GetOrigin() == second.GetOrigin()
    assert first.GetSpacing() == second.GetSpacing()
    assert first.GetDirection() == second.GetDirection()


@quick
@given(shapes, seeds, st.sampled_from(["png", "tif"]), st.booleans())
def test_pictures(
    tmp_path: Path, shape: tuple[int, ...], seed: int, kind: str, colour: bool
) -> None:
    painted = random_labels(shape[:2], seed)
    stored = np.repeat(painted[..., np.newaxis], 3, axis=2) if colour else painted
    source = tmp_path / f"picture.{kind}"
    Image.fromarray(stored).save(source)
    image = read_image(source)
    assert image.is_rgb == colour
    assert image.grid.shape == (shape[1], shape[0])
    labels = image.voxels[..., 0] if colour else image.voxels
    target = tmp_path / "labels.png"
    write_label_map(target, through_slices(labels, image.grid), image.grid)
    assert np.array_equal(np.asarray(Image.open(target)), painted)
    flat = tmp_path / "labels.nrrd"
    write_label_map(flat, through_slices(labels, image.grid), image.grid)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(flat)))[0], painted)


@quick
@given(affines(), shapes, seeds)
def test_dicom_series(
    tmp_path_factory: pytest.TempPathFactory,
    affine: NDArray[np.float64],
    shape: tuple[int, ...],
    seed: int,
) -> None:
    """Files in any order; the grid runs along the normal, as DICOM's own right-handed axes do."""
    shape = (shape[0], shape[1], shape[2] + 1)
    lps = (LPS @ affine)[:3]
    if np.dot(np.cross(lps[:, 0], lps[:, 1]), lps[:, 2]) < 0:
        affine = affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    painted = random_labels(shape, seed)
    folder = tmp_path_factory.mktemp("series")
    order = list(range(shape[2]))
    random.Random(seed).shuffle(order)
    write_series(folder / "dicom", painted.astype(np.int16), affine, order)
    image = read_image(folder / "dicom")
    assert np.array_equal(image.voxels, painted)
    np.testing.assert_allclose(image.grid.affine, affine, atol=1e-4)
    target = folder / "labels.nii.gz"
    write_label_map(target, through_slices(painted, image.grid), image.grid)
    written = nib.load(target)
    assert np.array_equal(np.asanyarray(written.dataobj), painted)
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)


def test_tilted_gantry_is_held_exactly(tmp_path: Path) -> None:
    """Slices shifted within their plane: the affine shears, no voxel moves."""
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    affine[1, 2] = 0.5
    painted = random_labels((5, 6, 4), 1)
    write_series(tmp_path / "ct", painted.astype(np.int16), LPS @ affine, [2, 0, 3, 1])
    image = read_image(tmp_path / "ct")
    np.testing.assert_allclose(image.grid.affine, LPS @ affine, atol=1e-6)
    write_label_map(tmp_path / "labels.nii.gz", image.voxels.astype(np.uint8), image.grid)
    written = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(written.affine, LPS @ affine, atol=1e-6)
    assert np.array_equal(np.asanyarray(written.dataobj), painted)


@given(affines(shear=True), shapes, seeds)
def test_slices_invert(affine: NDArray[np.float64], shape: tuple[int, ...], seed: int) -> None:
    grid = Grid(shape=shape, affine=affine)
    labels = random_labels(shape, seed)
    assert np.array_equal(through_slices(labels, grid), labels)
    coloured = np.stack([labels, labels + 1], axis=-1)
    view = SliceView.of(grid)
    assert np.array_equal(view.restore(view.slices(coloured)), coloured)


# a voxel at the patient's left, front and head end, and where radiologists expect it
@pytest.mark.parametrize(
    ("spacing", "row_end", "column_end", "name"),
    [
        ((1, 1, 5), "first", "last", "axial"),
        ((1, 5, 1), "first", "last", "coronal"),
        ((5, 1, 1), "first", "first", "sagittal"),
        ((1, 1, 1), "first", "last", "isotropic, cut axially"),
    ],
)
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SAR", "PIL", "ASL"])
def test_radiological_orientation(
    spacing: tuple[int, int, int], row_end: str, column_end: str, name: str, codes: str
) -> None:
    """Axial and coronal: front or head at the top, patient's left at the right of the image;
    sagittal: head at the top, front at the left."""
    shape = (6, 7, 8)
    ras = np.zeros(shape, np.uint8)
    ras[-1, -1, -1] = 1
    image = nib.Nifti1Image(ras, np.diag([*map(float, spacing), 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = image.as_reoriented(turn)
    # left is the low end of RAS+'s first axis
    labels = np.zeros(turned.shape, np.uint8)
    left_front_head = np.linalg.inv(turned.affine) @ (image.affine @ [0, 6, 7, 1])
    labels[tuple(round(float(value)) for value in left_front_head[:3])] = 1
    view = SliceView.of(Grid(shape=turned.shape, affine=turned.affine))
    slices = view.slices(labels)
    _, row, column = (int(index[0]) for index in np.nonzero(slices))
    assert row == (0 if row_end == "first" else slices.shape[1] - 1), name
    assert column == (0 if column_end == "first" else slices.shape[2] - 1), name


def test_slices_follow_the_acquisition() -> None:
    grid = Grid(shape=(20, 30, 40), affine=np.diag([1.0, 4.0, 1.5, 1.0]))
    view = SliceView.of(grid)
    assert view.slices(np.zeros(grid.shape)).shape == (30, 40, 20)
    assert view.in_plane_spacing == (1.5, 1.0)


def test_frames_without_patient_space_keep_their_order() -> None:
    grid = Grid(shape=(4, 5, 6), affine=np.eye(4), has_patient_space=False)
    frames = np.arange(6) * np.ones((4, 5, 1))
    assert SliceView.of(grid).slices(frames)[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
