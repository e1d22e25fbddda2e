"""NIfTI compressed by ISA-L: gzip to everybody else."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from esp_medsam_app.data.image import Grid, MedicalImage
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.writing import write_image, write_label_map
from esp_medsam_app.errors import InputError

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 2.0, 0, -40], [0, 0, 4, 7], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (33, 20, 9)).astype(np.int16)


def test_others_read_what_was_written(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a", MedicalImage(VOXELS, Grid(VOXELS.shape, AFFINE)))
    assert path.name == "a.nii.gz"
    read: Any = nib.load(path)
    assert np.array_equal(np.asanyarray(read.dataobj), VOXELS)
    assert np.allclose(read.affine, AFFINE)
    # header, and two bytes a voxel
    assert len(gzip.decompress(path.read_bytes())) == 352 + 2 * VOXELS.size


@pytest.mark.parametrize("name", ["a.nii.gz", "A.NII.GZ"])
def test_what_others_wrote_is_read(name: str, tmp_path: Path) -> None:
    scaled = nib.Nifti1Image(VOXELS, AFFINE)
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, tmp_path / "b.nii.gz")
    path = tmp_path / name
    (tmp_path / "b.nii.gz").rename(path)
    wanted: Any = nib.load(path)
    image = read_image(path)
    assert np.array_equal(image.voxels, np.asanyarray(wanted.dataobj, np.float32))
    assert image.grid.nifti_header is not None


def test_several_members_and_bytes_behind_are_gzip_too(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "b.nii")
    content = (tmp_path / "b.nii").read_bytes() + b"notes"
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(content[:2000]) + gzip.compress(content[2000:]))
    assert np.array_equal(read_image(path).voxels, VOXELS)


@pytest.mark.parametrize(
    "behind", [b"\0" * 777, b"trailing", b"\0" * 700 + b"trailing", b"\x1f\x8b"]
)
def test_bytes_behind_the_stream_do_not_count(behind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "b.nii.gz"
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), path)
    path.write_bytes(path.read_bytes() + behind)
    assert np.array_equal(read_image(path).voxels, VOXELS)


@pytest.mark.parametrize(("name", "compressed"), [("a.nii.gz", False), ("a.nii", True)])
def test_the_content_tells_whether_it_is_compressed(
    name: str, compressed: bool, tmp_path: Path
) -> None:
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "b.nii")
    content = (tmp_path / "b.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    image = read_image(tmp_path / name)
    assert np.array_equal(image.voxels, VOXELS)
    np.testing.assert_allclose(image.grid.affine, AFFINE, atol=1e-6)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated"):
        read_image(tmp_path / name)


def test_the_same_labels_are_the_same_bytes(tmp_path: Path) -> None:
    labels = (VOXELS > 0).astype(np.uint8)
    grid = Grid(VOXELS.shape, AFFINE)
    one, two = (write_label_map(tmp_path / name, labels, grid) for name in ("1.nii.gz", "2.nii.gz"))
    assert one.read_bytes() == two.read_bytes()


def test_a_wrong_checksum_is_damage(tmp_path: Path) -> None:
    """Voxels would be wrong without a word."""
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "b.nii.gz")
    path = tmp_path / "b.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"b\.nii\.gz: .*damaged"):
        read_image(path)
