"""What a process that reads files and the one that asks it send each other.

The reader may have been taken over by a file: its answers are unpacked into nothing but images,
grids and arrays.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from esp_medsam_app import errors
from esp_medsam_app.errors import EspMedSamError

KEPT, RETIRES = b"k", b"r"
_RESULT, _ERROR, _FAILURE = b"=", b"!", b"?"
_HEAD = struct.Struct("<cQI")
_LENGTH = struct.Struct("<Q")
# texts, and images without their voxels
_LARGEST_TEXT = 1 << 20
_MOST_ARRAYS = 16
_BLOCK = 1 << 22
_NUMPY = {
    (module.format(core), name)
    for core in ("core", "_core")
    for module, name in (
        ("numpy.{}.multiarray", "_reconstruct"),
        ("numpy.{}.multiarray", "scalar"),
        ("numpy.{}.numeric", "_frombuffer"),
    )
}
_KNOWN = _NUMPY | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("esp_medsam_app.data.image", "Grid"),
    ("esp_medsam_app.data.image", "MedicalImage"),
    ("esp_medsam_app.data.turns", "Turn"),
    ("nibabel.nifti1", "Nifti1Header"),
    ("nibabel.nifti1", "Nifti1Extensions"),
    ("nibabel.nifti2", "Nifti2Header"),
    ("pathlib", "PosixPath"),
}


@dataclass(frozen=True)
class Request:
    """What is to be read.

    Attributes:
        function: of `reading`.
        arguments: of it.
        options: further ones, by name.
        memory: bytes that it may take; none: as it likes.
        seconds: that it may take.
    """

    function: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    memory: int | None
    seconds: float


class ReaderFailedError(Exception):
    """A defect in the reader, or an answer that is none; the text is for the log."""


def send_result(answers: BinaryIO, result: Any) -> None:
    """Send an image or a grid; its arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    answers.write(_HEAD.pack(_RESULT, len(content), len(views)))
    answers.write(content)
    for view in views:
        answers.write(_LENGTH.pack(view.nbytes))
        answers.write(view)
    answers.flush()


def send_error(answers: BinaryIO, error: EspMedSamError) -> None:
    """Send what is wrong with a file."""
    path = None if error.path is None else str(error.path)
    told = {
        "problem": error.problem,
        "path": path,
        "remedy": error.remedy,
        "kind": type(error).__name__,
    }
    _send_text(answers, _ERROR, json.dumps(told))


def send_failure(answers: BinaryIO, text: str) -> None:
    """Send the traceback of a defect."""
    _send_text(answers, _FAILURE, text)


def _send_text(answers: BinaryIO, kind: bytes, text: str) -> None:
    content = text.encode(errors="replace")[:_LARGEST_TEXT]
    answers.write(_HEAD.pack(kind, len(content), 0))
    answers.write(content)
    answers.flush()


def receive(read_into: Callable[[memoryview], None], most: int | None) -> Any:
    """What a reader answers.

    Args:
        read_into: fills a buffer with what comes next, or raises.
        most: bytes that its arrays may have.

    Raises:
        EspMedSamError: the file cannot be used.
        ReaderFailedError: the reader has a defect, or its answer is none.
    """
    kind, size, count = _HEAD.unpack(_bytes(read_into, _HEAD.size))
    if size > _LARGEST_TEXT or count > _MOST_ARRAYS:
        raise ReaderFailedError("the answer of a reader is too long")
    content = _bytes(read_into, size)
    if kind == _ERROR:
        try:
            told = json.loads(content)
            problem, remedy = str(told["problem"]), str(told["remedy"])
            its_path = told["path"]
            kind_of_error = getattr(errors, str(told["kind"]), None)
        except (ValueError, KeyError, TypeError) as error:
            raise ReaderFailedError("the answer of a reader is none") from error
        if not (isinstance(kind_of_error, type) and issubclass(kind_of_error, EspMedSamError)):
            raise ReaderFailedError("the error of a reader is none")
        raise kind_of_error(problem, path=str(its_path) if its_path else None, remedy=remedy)
    if kind != _RESULT:
        raise ReaderFailedError(content.decode(errors="replace"))
    buffers = []
    for _ in range(count):
        (length,) = _LENGTH.unpack(_bytes(read_into, _LENGTH.size))
        if most is not None and length > most:
            raise ReaderFailedError("the answer of a reader is too large")
        buffers.append(_array(read_into, length))
    try:
        return _Unpickler(io.BytesIO(content), buffers=buffers).load()
    except Exception as error:
        raise ReaderFailedError(f"the answer of a reader is none ({error!r})") from error


def _bytes(read_into: Callable[[memoryview], None], size: int) -> bytes:
    content = bytearray(size)
    read_into(memoryview(content))
    return bytes(content)


def _array(read_into: Callable[[memoryview], None], size: int) -> Any:
    """Memory of its own, which goes back to the system with the array, whatever malloc keeps."""
    if size < _BLOCK:
        buffer: Any = bytearray(size)
    else:
        buffer = mmap.mmap(-1, size)
    read_into(memoryview(buffer))
    return buffer


class _Unpickler(pickle.Unpickler):
    """Of nothing but what images are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an image")
        return super().find_class(module, name)
