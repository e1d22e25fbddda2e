"""Archives whose names or notes are too long for files and memory."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from esp_medsam_app.data import archives
from esp_medsam_app.errors import InputError
from esp_medsam_app.server import reading


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"x")
    return content.getvalue()


def tarred(kind: int) -> Callable[[str], bytes]:
    def make(name: str) -> bytes:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz", format=kind) as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        return content.getvalue()

    return make


MAKERS = {"zip": zipped, "tar.gz": tarred(tarfile.GNU_FORMAT), "tar": tarred(tarfile.PAX_FORMAT)}
NAMES = {
    "a name": "n" * 300,
    "a name of many bytes": "\N{CJK UNIFIED IDEOGRAPH-7530}" * 100,
    "a folder": f"{'n' * 300}/a.nii",
    "a path": "/".join(["folder"] * 1000),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("unpack", [archives.unpack, reading.unpack])
def test_names_that_are_too_long_are_told(
    kind: str, name: str, unpack: Callable[[Path, Path], int], tmp_path: Path
) -> None:
    archive, folder = tmp_path / f"a.{kind}", tmp_path / "unpacked"
    folder.mkdir()
    archive.write_bytes(MAKERS[kind](NAMES[name]))
    with pytest.raises(InputError, match="name is too long"):
        unpack(archive, folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_notes_that_fill_the_memory_are_told(kind: bytes, tmp_path: Path) -> None:
    note = tarfile.TarInfo("note")
    note.type, note.size = kind, 2 << 20
    archive = tmp_path / "a.tar"
    archive.write_bytes(note.tobuf(tarfile.USTAR_FORMAT) + bytes(note.size + 1024))
    with pytest.raises(InputError, match="says too much"):
        archives.unpack(archive, tmp_path)


def test_an_archive_is_unpacked_by_a_reader(tmp_path: Path) -> None:
    archive, folder = tmp_path / "a.zip", tmp_path / "unpacked"
    folder.mkdir()
    archive.write_bytes(zipped("below/a.nii"))
    assert reading.unpack(archive, folder) == 1
    assert (folder / "below" / "a.nii").read_bytes() == b"x"
