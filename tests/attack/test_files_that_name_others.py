"""A file that is sent may not have this machine open another one."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.fileset import FileSet
from support.dicom_series import write_series

from esp_medsam_app.data.attached import check_attached
from esp_medsam_app.data.image import Grid
from esp_medsam_app.data.reading import read_grid, read_image, read_label_map
from esp_medsam_app.data.trust import own_files
from esp_medsam_app.errors import InputError

SHAPE = (4, 3, 2)
SECRET = bytes(range(100, 124))
NRRD = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"
META = b"ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_UCHAR\n"
VOXELS = bytes(24)


def nrrd(field: str) -> Callable[[Path, Path], bytes]:
    return lambda folder, secret: NRRD + field.format(secret=secret).encode() + b"\n\n" + VOXELS


def meta(field: str) -> Callable[[Path, Path], bytes]:
    return lambda folder, secret: META + field.format(secret=secret).encode() + b"\n" + VOXELS


def pair(folder: Path, secret: Path) -> bytes:
    """The header of a NIfTI pair (`.hdr` and `.img`), under the name of a single file."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SHAPE, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, *[1] * 8)
    header[344:348] = b"ni1\0"
    (folder / "a.img").write_bytes(SECRET)
    return bytes(header)


def hdf5(folder: Path, secret: Path) -> bytes:
    """ITK reads HDF5 and VTK by their content, under any name; HDF5 may keep its data elsewhere."""
    file = folder / "itk.hdf5"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE[::-1], np.uint8)), str(file))
    return file.read_bytes()


def vtk(folder: Path, secret: Path) -> bytes:
    file = folder / "itk.vtk"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE[::-1], np.uint8)), str(file))
    return file.read_bytes()


def postscript(folder: Path, secret: Path) -> bytes:
    """Pillow has Ghostscript run it."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n%%EndComments\n" + (
        f"({secret}) (r) file\n%%EOF\n".encode()
    )


def svg(folder: Path, secret: Path) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{secret}"/></svg>'.encode()


def dicomdir(folder: Path, secret: Path) -> bytes:
    write_series(folder / "ct", np.zeros((4, 3, 2), np.int16), np.eye(4), [0, 1])
    for file in (folder / "ct").glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.StudyDate, dataset.StudyTime = "p", "20200101", "101010"
        dataset.StudyInstanceUID = "1.2.3"
        dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, 1
        dataset.save_as(file)
    files = FileSet()
    for file in (folder / "ct").glob("*.dcm"):
        files.add(file)
    files.write(folder / "set")
    return (folder / "set" / "DICOMDIR").read_bytes()


def pixels_by_address(folder: Path, secret: Path) -> bytes:
    """JPIP: the pixels are where (0028,7FE0) says."""
    write_series(folder / "ct", np.zeros((4, 3, 1), np.int16), np.eye(4), [0])
    dataset = pydicom.dcmread(folder / "ct" / "000.dcm")
    del dataset.PixelData
    dataset.add_new(0x00287FE0, "UR", f"file://{secret}")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.94"
    dataset.save_as(folder / "jpip.dcm")
    return (folder / "jpip.dcm").read_bytes()


def ome_tiff(folder: Path, secret: Path) -> bytes:
    """OME-TIFF may tell in its description of pages in other files; here of nothing else."""
    told = f'<OME><Image><Pixels><TiffData><UUID FileName="{secret}"/></TiffData></Pixels></Image>'
    Image.new("L", (4, 3)).save(folder / "ome.tif", description=told + "</OME>")
    return (folder / "ome.tif").read_bytes()


ATTACKS: dict[str, tuple[str, Callable[[Path, Path], bytes]]] = {
    "nrrd": (".nrrd", nrrd("data file: {secret}")),
    "nrrd, one word": (".nrrd", nrrd("datafile: {secret}")),
    "nrrd, capitals": (".nrrd", nrrd("DATA FILE: {secret}")),
    "nrrd, seg": (".seg.nrrd", nrrd("data file: {secret}")),
    "nrrd, header": (".nhdr", nrrd("data file: {secret}")),
    "nrrd, list": (".nrrd", nrrd("data file: LIST\n{secret}")),
    "nrrd, list of slices": (".nrrd", nrrd("data file: LIST 3\n{secret}")),
    "nrrd, numbered": (".nrrd", nrrd("data file: {secret}%d 1 2 1")),
    "nrrd, behind a carriage return": (".nrrd", nrrd("# plain\rdata file: {secret}")),
    "nrrd, beside it": (".nrrd", nrrd("data file: secret.raw")),
    "nrrd, below it": (".nrrd", nrrd("data file: below/secret.raw")),
    "meta": (".mha", meta("ElementDataFile = {secret}")),
    "meta, header": (".mhd", meta("ElementDataFile = {secret}")),
    "meta, colon": (".mha", meta("ElementDataFile: {secret}")),
    "meta, indented": (".mha", meta("  ElementDataFile = {secret}")),
    "meta, list": (".mha", meta("ElementDataFile = LIST\n{secret}\n{secret}")),
    "meta, numbered": (".mha", meta("ElementDataFile = {secret}%d 1 2 1")),
    "meta, text in place of a number": (".mha", meta("ElementDataFile = %s%s%s 1 2 1")),
    "meta, twice": (".mha", meta("ElementDataFile = {secret}\nElementDataFile = LOCAL")),
    "meta, in a comment": (
        ".mha", meta("Comment = ElementDataFile = LOCAL\nElementDataFile = {secret}"),
    ),
    "meta, beside it": (".mha", meta("ElementDataFile = secret.raw")),
    "nifti pair": (".nii", pair),
    "nifti pair, compressed by name": (".nii.gz", pair),
    "hdf5 as nrrd": (".nrrd", hdf5),
    "hdf5 as mha": (".mha", hdf5),
    "vtk as nrrd": (".nrrd", vtk),
    "postscript as png": (".png", postscript),
    "postscript as tiff": (".tif", postscript),
    "svg as png": (".png", svg),
    "dicomdir": (".dcm", dicomdir),
    "pixels by address": (".dcm", pixels_by_address),
}  # fmt: skip


def _made(folder: Path, attack: str) -> Path:
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    suffix, make = ATTACKS[attack]
    sent = folder / "sent"
    (sent / "below").mkdir(parents=True)
    for place in (sent, sent / "below"):
        (place / "secret.raw").write_bytes(SECRET)
    file = sent / f"a{suffix}"
    file.write_bytes(make(folder, outside / "secret"))
    return file


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_comes_from_outside_names_no_file(attack: str, tmp_path: Path) -> None:
    file = _made(tmp_path, attack)
    grid = Grid(SHAPE, np.eye(4))
    for read in (read_image, lambda path: read_label_map(path, grid)):
        with pytest.raises(InputError) as caught:
            read(file)
        assert str(tmp_path / "outside") not in caught.value.problem
    with suppress(InputError):
        # what a header says by itself is no harm
        assert attack == "pixels by address" or not read_grid(file)


def test_what_stands_behind_an_nrrd_header_is_voxels(tmp_path: Path) -> None:
    file = tmp_path / "a.nrrd"
    (tmp_path / "secret.raw").write_bytes(SECRET)
    file.write_bytes(NRRD + b"\r\ndata file: secret.raw\n\n" + VOXELS)
    assert read_image(file).voxels.ravel(order="F").tobytes() == b"data file: secret.raw\n\n\0"


@pytest.mark.parametrize(
    "attack", [name for name, (suffix, _) in ATTACKS.items() if name.startswith(("nrrd", "meta"))]
)
def test_the_door_refuses_it_before_it_is_read(attack: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"another file|ambiguous"):
        check_attached(_made(tmp_path, attack))


def test_a_description_is_only_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    file.write_bytes(ome_tiff(tmp_path, tmp_path / "secret"))
    assert read_image(file).voxels.max() == 0


@pytest.mark.parametrize("suffix", [".nrrd", ".seg.nrrd", ".mha", ".nhdr"])
def test_attached_voxels_are_read(suffix: str, tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.mha"))
    source = tmp_path / ("a.mha" if suffix == ".mha" else "a.nrrd")
    file = tmp_path / f"b{suffix}"
    file.write_bytes(source.read_bytes())
    check_attached(file)
    assert np.array_equal(read_image(file).voxels, voxels.T)


# --- a user's own files -------------------------------------------------------------------------

OWN = {
    "nrrd": (".nhdr", nrrd("data file: below/v.raw")),
    "nrrd, list": (".nhdr", nrrd("data file: LIST\nbelow/1.raw\nbelow/2.raw")),
    "nrrd, numbered": (".nhdr", nrrd("data file: below/%d.raw 1 2 1")),
    "meta": (".mhd", meta("ElementDataFile = below/v.raw")),
    "meta, list": (".mhd", meta("ElementDataFile = LIST\nbelow/1.raw\nbelow/2.raw")),
    "meta, numbered": (".mhd", meta("ElementDataFile = below/%d.raw 1 2 1")),
}


@pytest.mark.parametrize("kind", OWN)
def test_own_files_may_lie_below_their_header(kind: str, tmp_path: Path) -> None:
    suffix, make = OWN[kind]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "v.raw").write_bytes(SECRET)
    (tmp_path / "below" / "1.raw").write_bytes(SECRET[:12])
    (tmp_path / "below" / "2.raw").write_bytes(SECRET[12:])
    file = tmp_path / f"v{suffix}"
    # nothing behind the header: it would be more of the list
    file.write_bytes(make(tmp_path, tmp_path).rstrip(b"\0").rstrip(b"\n") + b"\n")
    with own_files():
        voxels = read_image(file).voxels
    assert np.array_equal(voxels, np.frombuffer(SECRET, np.uint8).reshape(SHAPE[::-1]).T)
    with pytest.raises(InputError, match="another file"):
        read_image(file)


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "pipe", "device", "missing", "nul"])
@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_own_files_lie_nowhere_else(kind: str, suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "v.raw").write_bytes(SECRET)
    (folder / "link.raw").symlink_to(tmp_path / "v.raw")
    os.mkfifo(folder / "pipe.raw")
    name = {
        "above": "../v.raw",
        "absolute": str(tmp_path / "v.raw"),
        "link": "link.raw",
        "pipe": "pipe.raw",
        "device": "/dev/zero",
        "missing": "gone.raw",
        "nul": "v\0.raw",
    }[kind]
    field = "data file: " if suffix == ".nhdr" else "ElementDataFile = "
    file = folder / f"v{suffix}"
    file.write_bytes((NRRD if suffix == ".nhdr" else META) + f"{field}{name}\n\n".encode())
    with own_files(), pytest.raises(InputError, match="its header names"):
        read_image(file)


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".png", ".dcm"])
def test_a_pipe_is_no_image(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    with own_files(), pytest.raises(InputError, match="no plain file"):
        read_image(tmp_path / f"a{suffix}")
