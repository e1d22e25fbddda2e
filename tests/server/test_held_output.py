"""Holding back what a server prints while it starts."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from esp_medsam_app.server.held_output import HeldOutput

STARTING = b"USING:: app\n[1] [WARNING] odd\n\xff\n"


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    readable, writable = os.pipe()
    with os.fdopen(readable, "rb") as source, os.fdopen(writable, "wb", buffering=0) as process:
        yield source, process


@pytest.mark.parametrize(
    ("all_lines", "shown"),
    [(True, "USING:: app\n[1] [WARNING] odd\n\ufffd\n"), (False, "[1] [WARNING] odd\n")],
)
def test_lines_held_are_shown_or_sifted(
    pipe: tuple[BinaryIO, BinaryIO], all_lines: bool, shown: str
) -> None:
    source, process = pipe
    target = io.StringIO()
    output = HeldOutput(source, target)
    process.write(STARTING)
    process.close()
    output.finish()
    assert target.getvalue() == ""
    output.release(all_lines=all_lines)
    assert target.getvalue() == shown


def test_later_lines_pass(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    source, process = pipe
    target = io.StringIO()
    output = HeldOutput(source, target)
    output.release(all_lines=False)
    process.write(b"a request\n")
    process.close()
    output.finish()
    assert target.getvalue() == "a request\n"
