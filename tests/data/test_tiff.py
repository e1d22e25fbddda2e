"""TIFF files as microscopes, scanners and scripts write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError

GREY = np.random.default_rng(0).integers(0, 256, (6, 5)).astype(np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 5, 3)).astype(np.uint8)


def written(folder: Path, array: np.ndarray, **options: object) -> Path:
    path = folder / "a.tif"
    tifffile.imwrite(path, array, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16", "int32", "float32"])
def test_values_are_kept(kind: str, tmp_path: Path) -> None:
    stored = GREY.astype(np.float64) * (np.iinfo(kind).max // 255 if kind != "float32" else 0.01)
    path = written(tmp_path, stored.astype(kind), photometric="minisblack")
    voxels = read_image(path).voxels
    assert voxels.dtype == np.dtype(kind)
    assert np.array_equal(voxels.T, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def test_doubles_are_read(tmp_path: Path) -> None:
    """ITK cannot."""
    voxels = read_image(written(tmp_path, GREY / 255, photometric="minisblack")).voxels
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels.T, GREY / 255, rtol=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "int16", "float32"])
def test_white_is_zero_is_bright_where_it_looks_bright(kind: str, tmp_path: Path) -> None:
    shown = GREY.astype(kind) if kind != "float32" else (GREY / 255).astype(kind)
    if kind == "int16":
        stored = -1 - shown
    elif kind == "float32":
        stored = shown.max() + shown.min() - shown
    else:
        stored = np.iinfo(kind).max - shown
    path = written(tmp_path, stored, photometric="miniswhite")
    np.testing.assert_allclose(read_image(path).voxels.T, shown, atol=1e-6)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        ("uint8", 1),
        ("uint16", 257),
        ("uint32", 16843009),
        ("float32", 1 / 255),
        ("float64", 1 / 255),
    ],
)
def test_deep_colours_are_bytes(kind: str, factor: float, planar: str, tmp_path: Path) -> None:
    colours = (COLOURS * np.float64(factor)).astype(kind)
    if planar == "separate":
        colours = np.moveaxis(colours, -1, 0)
    path = written(tmp_path, colours, photometric="rgb", planarconfig=planar)
    image = read_image(path)
    assert image.is_rgb
    assert np.array_equal(image.voxels.swapaxes(0, 1), COLOURS)


def test_colours_without_meaning(tmp_path: Path) -> None:
    path = written(tmp_path, COLOURS.astype(np.float32) - 9, photometric="rgb")
    with pytest.raises(InputError, match=r"a\.tif: colours of type float32 between -"):
        read_image(path)


def test_several_channels_are_no_colours(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((6, 5, 7), np.uint16), photometric="minisblack",
                   planarconfig="contig")  # fmt: skip
    with pytest.raises(InputError, match="7 values of type uint16"):
        read_image(path)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_byte_orders_and_bigtiff(byteorder: str, bigtiff: bool, tmp_path: Path) -> None:
    deep = GREY.astype(np.uint32) * 3
    path = written(tmp_path, deep, byteorder=byteorder, bigtiff=bigtiff)
    voxels = read_image(path).voxels
    assert voxels.dtype.isnative
    assert np.array_equal(voxels.T, deep)


@pytest.mark.parametrize("reduced", [0, 1])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_of_a_pyramid_level_0_is_taken(kind: type, reduced: int, tmp_path: Path) -> None:
    """Whole-slide scanners mark smaller levels, or do not."""
    level = np.random.default_rng(2).integers(0, 255, (101, 203)).astype(kind)
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(level, photometric="minisblack")
        file.write(level[:-1:2, :-1:2].copy(), subfiletype=reduced, photometric="minisblack")
        file.write(level[:-1:4, :-1:4].copy(), subfiletype=reduced, photometric="minisblack")
    assert np.array_equal(read_image(path).voxels.T, level)


def test_levels_beside_the_pages(tmp_path: Path) -> None:
    """OME-TIFF keeps them below each page."""
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path) as file:
        for number in (1, 2):
            level = np.full((64, 64), number, np.uint8)
            file.write(level, subifds=1, photometric="minisblack")
            file.write(level[::2, ::2].copy(), subfiletype=1, photometric="minisblack")
    image = read_image(path)
    assert image.grid.shape == (64, 64, 2)
    assert image.voxels[0, 0].tolist() == [1, 2]


def test_deep_pages_are_a_volume(tmp_path: Path) -> None:
    pages = np.arange(3 * 6 * 5, dtype=np.uint32).reshape(3, 6, 5)
    path = written(tmp_path, pages, photometric="minisblack")
    assert np.array_equal(read_image(path).voxels, pages.T)


def test_usual_compressions_of_deep_pixels(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 200
    path = tmp_path / "a.tif"
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        Image.fromarray(deep).save(path, compression=compression)
        assert np.array_equal(read_image(path).voxels.T, deep), compression


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(GREY.astype(np.uint16)).save(path, compression="tiff_lzw")
    content = path.read_bytes()
    # Compression (259), SHORT, one value: 5 is LZW, 34712 JPEG 2000
    tag = b"\x03\x01\x03\x00\x01\x00\x00\x00"
    assert content.count(tag + b"\x05\x00") == 1
    path.write_bytes(content.replace(tag + b"\x05\x00", tag + (34712).to_bytes(2, "little")))
    with pytest.raises(InputError, match=r"compressed by JPEG_?2000.*Save it without compression"):
        read_image(path)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GREY.astype(np.uint16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"5 x 6 pixels are more than 20.*Crop"):
        read_image(path)


def test_truncated(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((60, 50), np.uint32), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="truncated"):
        read_image(path)
