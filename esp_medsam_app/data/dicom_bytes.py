"""DICOM data sets from outside: no more is unpacked than a file may become."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom import filereader
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from esp_medsam_app.data.admission import BYTES_A_BYTE, LEAST
from esp_medsam_app.data.trust import files_are_own
from esp_medsam_app.errors import InputError

_BLOCK = 1 << 20


def read_dataset(source: Path | BinaryIO, **options: Any) -> Dataset:
    """`pydicom.dcmread`, which by itself unpacks a deflated data set however large it becomes.

    Args:
        source: a file, or its content.
        options: of `dcmread`.

    Raises:
        InputError: it would become too large.
        Exception: whatever pydicom's parser meets.
    """
    if not files_are_own():
        if isinstance(source, Path):
            with source.open("rb") as file:
                _check_deflated(file, source)
        else:
            start = source.tell()
            _check_deflated(source, None)
            source.seek(start)
    return pydicom.dcmread(source, **options)


def _check_deflated(file: BinaryIO, path: Path | None) -> None:
    """Unpack a deflated data set block by block, and keep nothing of it."""
    try:
        filereader.read_preamble(file, True)
        # pydicom's own way to the data set: another parser might find another syntax
        meta = filereader._read_file_meta_info(file)
        filereader._read_command_set_elements(file)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
    except InvalidDicomError:
        return
    unpacker, packed, count = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while block := unpacker.unconsumed_tail or file.read(_BLOCK):
        count += len(unpacker.decompress(block, _BLOCK))
        packed = file.tell()
        if count > max(LEAST // 2, packed * BYTES_A_BYTE // 2):
            raise InputError(
                "its deflated data set becomes too large when it is unpacked",
                path=path,
                remedy="Export it with another transfer syntax",
            )
