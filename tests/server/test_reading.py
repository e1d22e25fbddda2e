"""Files are read by other processes, which have limits and can be ended."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from PIL import Image
from support.dicom_series import write_series

from esp_medsam_app.data import reading as direct
from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.errors import BusyError, InputError
from esp_medsam_app.server import reading
from esp_medsam_app.server.readers import Readers

VOXELS = np.random.default_rng(0).integers(0, 99, (6, 7, 5)).astype(np.int16)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 1.5, 0, -40], [0, 0, 4, 7], [0, 0, 0, 1]])
IMPORTS = "import os, pickle, sys, time; sys.path[:] = {path!r}; "
# a reader that takes requests and does something else
ASKED = "pickle.load(sys.stdin.buffer); "


def nifti(path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"a comment"))
    nib.save(image, path)


def rgb(path: Path) -> None:
    Image.fromarray(np.stack([VOXELS[..., 0]] * 3, -1).astype(np.uint8)).save(path)


MAKERS: dict[str, Callable[[Path], None]] = {
    "a.nii": nifti,
    "a.nii.gz": nifti,
    "a.nrrd": lambda path: sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path)),
    "a.mha": lambda path: sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path)),
    "a.png": rgb,
    "a.tif": rgb,
    "series": lambda path: write_series(path, VOXELS, AFFINE, range(5)),
}


@pytest.fixture
def stub() -> Iterator[Callable[..., Readers]]:
    """Readers whose processes run some lines of Python."""
    made: list[Readers] = []

    def make(program: str, **options: float) -> Readers:
        command = [sys.executable, "-c", IMPORTS.format(path=sys.path) + program]
        made.append(Readers(command, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for readers in made:
        readers.close()


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_read_apart_is_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    MAKERS[name](path)
    expected, image = direct.read_image(path), reading.read_image(path)
    grids = [image.grid, reading.read_grid(path), reading.read_label_map(path).grid]
    assert np.array_equal(image.voxels, expected.voxels)
    assert image.voxels.dtype == expected.voxels.dtype
    assert image.path == expected.path
    assert image.dicom_modality == expected.dicom_modality
    for grid in grids:
        assert grid.shape == expected.grid.shape
        assert np.array_equal(grid.affine, expected.grid.affine)
        assert grid.has_patient_space == expected.grid.has_patient_space
        assert (grid.nifti_header is None) == (expected.grid.nifti_header is None)
    if image.grid.nifti_header is not None:
        before = expected.grid.nifti_header.binaryblock
        assert image.grid.nifti_header.binaryblock == before


def test_errors_are_told_as_by_the_reader_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(InputError) as expected:
        direct.read_image(path)
    with pytest.raises(InputError) as caught:
        reading.read_image(path)
    assert str(caught.value) == str(expected.value)
    with pytest.raises(InputError, match="no such file"):
        reading.read_image(tmp_path / "gone.nii")


def test_the_server_s_secrets_stay_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_MEDSAM_TOKEN", "0123456789abcdef")
    readers = Readers()
    try:
        readers.warm()
        (reader,) = readers._idle
        assert "ESP_MEDSAM_TOKEN" not in psutil.Process(reader._process.pid).environ()
    finally:
        readers.close()


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (ASKED + "time.sleep(60)", "takes longer than 0 s"),
        (ASKED + "os.kill(os.getpid(), 11)", "its decoder failed"),
        (ASKED + "sys.exit(1)", "it cannot be read"),
        (ASKED + "os.write(1, b'no answer at all'); time.sleep(60)", "it cannot be read"),
        # begins to answer, and does not end
        (ASKED + "import struct; os.write(1, struct.pack('<cQI', b'=', 99, 0)); time.sleep(60)",
         "takes longer"),
        (ASKED + "import struct; os.write(1, struct.pack('<cQIQ', b'=', 0, 1, 1 << 50)); "
         "time.sleep(60)", "it cannot be read"),
    ],
)  # fmt: skip
def test_a_reader_that_fails_ends_alone(
    stub: Callable[..., Readers], program: str, told: str, tmp_path: Path
) -> None:
    readers = stub(program)
    with pytest.raises(InputError, match=told):
        readers.read("read_image", tmp_path / "a.nii", memory=1 << 20, seconds=0.4)
    assert not readers._busy


class Evil:
    """What a pickle may run."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("taken",)


def test_an_answer_runs_nothing(
    stub: Callable[..., Readers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(Evil())
    readers = stub(
        f"{ASKED}import struct; c = {content!r}; "
        "os.write(1, struct.pack('<cQI', b'=', len(c), 0) + c); time.sleep(60)"
    )
    with pytest.raises(InputError, match="cannot be read"):
        readers.read("read_image", tmp_path / "a.nii", memory=None, seconds=20)
    assert not (tmp_path / "taken").exists()


def test_who_finds_no_reader_is_sent_away(stub: Callable[..., Readers], tmp_path: Path) -> None:
    readers = stub(ASKED + "time.sleep(60)", most=1, wait=0.1)

    def ask() -> None:
        with pytest.raises(InputError):
            readers.read("read_image", tmp_path, memory=None, seconds=2)

    first = threading.Thread(target=ask)
    first.start()
    while not readers._busy:
        time.sleep(0.01)
    with pytest.raises(BusyError):
        readers.read("read_image", tmp_path, memory=None, seconds=1)
    readers.close()
    first.join()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_a_reader_takes_no_more_than_it_may(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    voxels = np.zeros((80, 512, 512), np.int16)
    if suffix == ".nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=True)
    else:
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    readers = Readers()
    try:
        with pytest.raises(InputError, match="more memory"):
            # less than nothing, as some is given for the decoder's own code
            readers.read("read_image", path, memory=-(170 << 20), seconds=60)
        # and is there for the next one
        nifti(tmp_path / "b.nii")
        found = readers.read("read_image", tmp_path / "b.nii", memory=64 << 20, seconds=60)
        assert isinstance(found, MedicalImage)
    finally:
        readers.close()


def test_readers_end_with_the_server(tmp_path: Path) -> None:
    """Also with `kill -9`: their input ends."""
    program = (
        "import os, signal; from esp_medsam_app.server.readers import Readers; r = Readers(); "
        "r.warm(); print(r._idle[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
