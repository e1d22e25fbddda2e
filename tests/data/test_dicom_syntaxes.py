"""Pixels in every syntax: decoded, or the syntax is named with the remedy."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from support.dicom_phantoms import ROWS, picture, volume

from esp_medsam_app.data import dicom_syntaxes
from esp_medsam_app.data.dicom_jpeg import is_rgb
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.errors import InputError

GREY = np.random.default_rng(0).integers(0, 4096, (ROWS, 12)).astype(np.uint16)
# smooth, so that JPEG changes little
COLOURS = np.stack(np.meshgrid(np.linspace(20, 230, 32), np.linspace(200, 30, 24)), axis=-1)
COLOURS = np.concatenate([COLOURS, np.full((24, 32, 1), 60)], axis=-1).astype(np.uint8)


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def compressed(dataset: FileDataset, streams: list[bytes], syntax: str, folder: Path) -> Path:
    """A file of pydicom's, whose syntax pydicom need not know."""
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].is_undefined_length = True
    path = folder / "a.dcm"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.save_as(path, write_like_original=False)
    content = path.read_bytes()
    old, new = (uid.encode() + b"\0" * (len(uid) % 2) for uid in ("1.2.840.10008.1.2.4.90", syntax))
    place = content.index(old)
    lengths = content[: place - 2] + len(new).to_bytes(2, "little")
    # the group's length is the first element
    group = int.from_bytes(content[140:144], "little") + len(new) - len(old)
    path.write_bytes(
        lengths[:140] + group.to_bytes(4, "little") + lengths[144:] + new
        + content[place + len(old) :]
    )  # fmt: skip
    return path


def grey(folder: Path, syntax: str, before: bytes = b"") -> Path:
    dataset = volume(1)[0]
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    stream = encoded(GREY, "JPEG2000", irreversible=False, no_jp2=True)
    return compressed(dataset, [before + stream], syntax, folder)


@pytest.mark.parametrize("syntax", ["90", "201", "202", "203"])
def test_high_throughput_jpeg_2000_reaches_a_decoder(syntax: str, tmp_path: Path) -> None:
    """Its decoder reads the plain kind too, for which there is an encoder here."""
    path = grey(tmp_path, f"1.2.840.10008.1.2.4.{syntax}")
    assert np.array_equal(read_image(path).voxels[..., 0].T, GREY.astype(int) - 10)


@pytest.mark.parametrize(
    ("syntax", "told"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.10008.1.2.4.112", "JPEG XL"),
        ("1.2.840.10008.1.2.4.999", "one that is not known here"),
        ("1.2.826.0.1.3680043.9.1", "a private one"),
    ],
)
def test_a_syntax_that_nothing_decodes_is_named(syntax: str, told: str, tmp_path: Path) -> None:
    named = rf"a\.dcm: .*\(transfer syntax {told}, {re.escape(syntax)}\).*uncompressed"
    with pytest.raises(InputError, match=named):
        read_image(grey(tmp_path, syntax, b"of a kind of its own"))


def test_a_private_syntax_around_a_standard_stream(tmp_path: Path) -> None:
    path = grey(tmp_path, "1.2.826.0.1.3680043.9.1")
    assert np.array_equal(read_image(path).voxels[..., 0].T, GREY.astype(int) - 10)
    path = compressed(photograph("YBR_FULL_422"), [JFIF], "1.2.826.0.1.3680043.9.1", tmp_path)
    read = read_image(path).voxels.swapaxes(0, 1).astype(int)
    assert np.abs(read - COLOURS).max() <= 6


def test_only_native_syntaxes_are_not_compressed(tmp_path: Path) -> None:
    plain = volume(1)[0]
    assert not dicom_syntaxes.is_encapsulated(plain)
    unknown = pydicom.dcmread(grey(tmp_path, "1.2.840.10008.1.2.4.201"))
    assert dicom_syntaxes.is_encapsulated(unknown)
    del plain.file_meta
    assert not dicom_syntaxes.is_encapsulated(plain)


def adobe(stream: bytes, transform: int) -> bytes:
    """Without JFIF's mark, with Adobe's."""
    assert stream[2:4] == b"\xff\xe0"
    length = int.from_bytes(stream[4:6], "big")
    mark = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return stream[:2] + mark + stream[4 + length :]


def unmarked(stream: bytes) -> bytes:
    return stream[:2] + stream[4 + int.from_bytes(stream[4:6], "big") :]


def photograph(tag: str) -> FileDataset:
    dataset = picture("XC", colour=True)
    dataset.Rows, dataset.Columns = COLOURS.shape[:2]
    dataset.PhotometricInterpretation = tag
    return dataset


def photo(streams: list[bytes], tag: str, folder: Path) -> Path:
    dataset = photograph(tag)
    if len(streams) > 1:
        dataset.NumberOfFrames = len(streams)
    return compressed(dataset, streams, "1.2.840.10008.1.2.4.50", folder)


def stored_as_rgb() -> bytes:
    """Three components that no decoder is to convert."""
    return encoded(COLOURS, "JPEG", quality=100, subsampling=0, keep_rgb=True)


JFIF = encoded(COLOURS, "JPEG", quality=100, subsampling=0)


@pytest.mark.parametrize("tag", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize(
    ("stream", "told"),
    [(JFIF, False), (adobe(JFIF, 1), False), (stored_as_rgb(), True)],
    ids=["JFIF", "Adobe YCbCr", "RGB"],
)
def test_colours_are_those_that_the_stream_tells(
    stream: bytes, told: bool, tag: str, tmp_path: Path
) -> None:
    assert is_rgb(stream) is told
    for streams in ([stream], [stream, stream]):
        voxels = read_image(photo(streams, tag, tmp_path)).voxels
        first = voxels if voxels.ndim == 3 else voxels[:, :, 0]
        assert np.abs(first.swapaxes(0, 1).astype(int) - COLOURS).max() <= 6


@pytest.mark.parametrize(
    ("transformed", "tag"),
    [(1, "RGB"), (1, "YBR_RCT"), (1, "YBR_FULL"), (1, "YBR_FULL_422"), (0, "RGB")],
)
def test_colours_of_jpeg_2000(transformed: int, tag: str, tmp_path: Path) -> None:
    stream = encoded(COLOURS, "JPEG2000", irreversible=False, mct=transformed, no_jp2=True)
    for syntax in ("90", "201"):
        path = compressed(photograph(tag), [stream], f"1.2.840.10008.1.2.4.{syntax}", tmp_path)
        assert np.array_equal(read_image(path).voxels.swapaxes(0, 1), COLOURS), syntax


def test_ycbcr_in_jpeg_2000_without_a_transformation(tmp_path: Path) -> None:
    stored = np.asarray(Image.fromarray(COLOURS).convert("YCbCr"))
    stream = encoded(stored, "JPEG2000", irreversible=False, mct=0, no_jp2=True)
    path = compressed(photograph("YBR_FULL"), [stream], "1.2.840.10008.1.2.4.90", tmp_path)
    read = read_image(path).voxels.swapaxes(0, 1).astype(int)
    assert np.abs(read - COLOURS).max() <= 3


def test_where_the_stream_says_nothing_the_tag_counts(tmp_path: Path) -> None:
    assert is_rgb(unmarked(JFIF)) is None
    read = read_image(photo([unmarked(JFIF)], "YBR_FULL_422", tmp_path)).voxels
    assert np.abs(read.swapaxes(0, 1).astype(int) - COLOURS).max() <= 6
    # taken for RGB: the brightness in place of red
    raw = read_image(photo([unmarked(JFIF)], "RGB", tmp_path)).voxels
    brightness = COLOURS @ [0.299, 0.587, 0.114]
    assert np.abs(raw[..., 0].T - brightness).max() <= 3


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", b"\xff\xd8\xff", JFIF[:30], b"\xff\xd8" * 9])
def test_a_damaged_stream_says_nothing(stream: bytes) -> None:
    assert is_rgb(stream) is None
