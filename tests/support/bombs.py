"""Small files that unpack to hundreds of megabytes; made without unpacking them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite, write_dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

SIDE, SLICES = 1000, 700
_BLOCK = bytes(1 << 24)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _BLOCK[:count]
        count -= len(_BLOCK)


def nifti_header(shape: tuple[int, ...], code: int, bits: int, offset: float = 352) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, *[1] * 8)
    struct.pack_into("<f", header, 108, offset)
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def nifti(path: Path) -> None:
    with igzip.open(path, "wb", 1) as file:
        file.write(nifti_header((SIDE, SIDE, SLICES), 2, 8))
        for block in _zeros(SIDE * SIDE * SLICES):
            file.write(block)


def wide_nifti(path: Path) -> None:
    """float64, which is computed with in copies."""
    with igzip.open(path, "wb", 1) as file:
        file.write(nifti_header((SIDE, SIDE, 90), 64, 64))
        for block in _zeros(SIDE * SIDE * 90 * 8):
            file.write(block)


def nifti_extension(path: Path) -> None:
    """One voxel, behind 700 MB of a comment."""
    size = SIDE * SIDE * SLICES
    with igzip.open(path, "wb", 1) as file:
        file.write(nifti_header((1, 1, 1), 2, 8, offset=352 + size)[:348] + b"\1\0\0\0")
        file.write(struct.pack("<ii", size, 6))
        for block in _zeros(size - 7):
            file.write(block)


def nrrd(path: Path) -> None:
    header = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: {} {} {}\nencoding: gzip\n\n"
    with path.open("wb") as file:
        file.write(header.format(SIDE, SIDE, SLICES).encode())
        with igzip.IGzipFile("", "wb", 1, file) as packed:
            for block in _zeros(SIDE * SIDE * SLICES):
                packed.write(block)


def meta(path: Path) -> None:
    packer = isal_zlib.compressobj(1)
    content = b"".join(map(packer.compress, _zeros(SIDE * SIDE * SLICES))) + packer.flush()
    path.write_bytes(
        f"ObjectType = Image\nNDims = 3\nDimSize = {SIDE} {SIDE} {SLICES}\n"
        f"ElementType = MET_UCHAR\nCompressedData = True\nCompressedDataSize = {len(content)}\n"
        "ElementDataFile = LOCAL\n".encode()
        + content
    )


def tiff(path: Path) -> None:
    """Pages that all have the same strip."""
    strip = zlib.compress(bytes(SIDE * SIDE))
    content = bytearray(b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip)
    for page in range(SLICES):
        entries = [
            (256, 4, SIDE), (257, 4, SIDE), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 8),
            (277, 3, 1), (278, 4, SIDE), (279, 4, len(strip)),
        ]  # fmt: skip
        following = len(content) + 2 + 12 * len(entries) + 4 if page + 1 < SLICES else 0
        content += struct.pack("<H", len(entries))
        for tag, kind, value in entries:
            content += struct.pack("<HHII", tag, kind, 1, value)
        content += struct.pack("<I", following)
    path.write_bytes(content)


def gif(path: Path) -> None:
    frames = [Image.new("L", (SIDE, SIDE), value) for value in (0, 9)]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    begin, mark, last = content.getvalue()[:-1].rpartition(b"!\xf9\x04")
    path.write_bytes(begin + (mark + last) * SLICES + b";")


def png(path: Path) -> None:
    """A palette of one bit a pixel, which becomes colours with transparency."""
    side = 13_000

    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes(6))
        + chunk(b"tRNS", b"\0\x80")
        + chunk(b"IDAT", zlib.compress(bytes(side * (side // 8 + 1))))
        + chunk(b"IEND", b"")
    )


def jpeg(path: Path) -> None:
    Image.new("L", (12_000, 12_000)).save(path)


def _dicom(frames: int, side: int) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.2"
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.PhotometricInterpretation = "OT", "MONOCHROME2"
    dataset.Rows = dataset.Columns = side
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PixelRepresentation = frames, 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    return dataset


def deflated(path: Path) -> None:
    size = SIDE * SIDE * SLICES
    dataset = _dicom(SLICES, SIDE)
    plain = DicomBytesIO()
    plain.is_little_endian, plain.is_implicit_VR = True, False
    write_dataset(plain, dataset)
    head = Dataset()
    head.file_meta = dataset.file_meta
    head.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head.is_little_endian, head.is_implicit_VR = True, False
    content = io.BytesIO()
    dcmwrite(content, head, write_like_original=False)
    # the deflated data set of nothing goes
    begin = content.getvalue().removesuffix(b"\x03\x00")
    packer = isal_zlib.compressobj(1, wbits=-15)
    packed = [packer.compress(plain.getvalue())]
    packed.append(packer.compress(struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, size)))
    packed += map(packer.compress, _zeros(size))
    path.write_bytes(begin + b"".join(packed) + packer.flush())


def film(path: Path) -> None:
    """JPEG in DICOM, the same frame over and over."""
    frame = io.BytesIO()
    Image.new("L", (3000, 3000)).save(frame, "JPEG", quality=5)
    dataset = _dicom(60, 3000)
    dataset.PixelData = encapsulate([frame.getvalue()] * 60)
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dcmwrite(path, dataset, write_like_original=False)


BOMBS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "nifti": (".nii.gz", nifti),
    "nifti of 64 bits": (".nii.gz", wide_nifti),
    "nifti extension": (".nii.gz", nifti_extension),
    "nrrd": (".nrrd", nrrd),
    "seg.nrrd": (".seg.nrrd", nrrd),
    "meta": (".mha", meta),
    "tiff": (".tif", tiff),
    "gif": (".gif", gif),
    "png": (".png", png),
    "jpeg": (".jpg", jpeg),
    "deflated dicom": (".dcm", deflated),
    "dicom film": (".dcm", film),
}
# what is kept of an image of this shape is 8 bits a voxel
LARGE = (512, 512, 100)


def wide_label(path: Path) -> None:
    """An honest label map, as many programs write it."""
    with igzip.open(path, "wb", 1) as file:
        file.write(nifti_header(LARGE, 64, 64))
        file.write(np.ones(1, np.float64).tobytes())
        for block in _zeros(512 * 512 * 100 * 8 - 8):
            file.write(block)
