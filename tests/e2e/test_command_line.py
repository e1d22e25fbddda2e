"""The commands as a user runs them: processes of their own, the starter weights, real files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

pytestmark = pytest.mark.e2e


def esp_medsam(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esp_medsam_app.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_evaluate_on_phantoms(samples: Path, tmp_path: Path) -> None:
    for part, source in (("images", "studies"), ("labels", "references")):
        (tmp_path / part).mkdir()
        shutil.copy(samples / source / "nuclei_phantom.png", tmp_path / part)
    report = tmp_path / "report.json"
    done = esp_medsam(
        "evaluate", "--data", tmp_path, "--modality", "microscopy_nuclei", "--json", report
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(report.read_text())
    assert (content["modality"], content["cases"]) == ("microscopy_nuclei", 1)
    assert content["per_case"][0]["name"] == "nuclei_phantom"
    assert content["dice"]["mean"] > 0.85
    assert content["dice"]["mean"] == content["per_case"][0]["dice"]
    assert f"{content['dice']['mean']:.4f}" in done.stdout


def test_segment_real_photographs(samples: Path, tmp_path: Path) -> None:
    """There is no reference for these; but stained nuclei and vessels cover a known share."""
    tissue = Image.open(samples / "studies" / "immunohistochemistry.png").crop((0, 0, 256, 256))
    tissue.save(tmp_path / "tissue.png")
    retina = Image.open(samples / "studies" / "retina.jpg")
    retina.resize((512, 512)).save(tmp_path / "retina.jpg", quality=95)
    for name, modality, low, high in (
        ("tissue.png", "microscopy_nuclei", 0.05, 0.6),
        ("retina.jpg", "fundus_vessels", 0.03, 0.2),
    ):
        done = esp_medsam(
            "segment", tmp_path / name, "-m", modality, "-o", tmp_path / "out", "--overlay"
        )
        assert done.returncode == 0, done.stderr
        stem = name.partition(".")[0]
        labels = np.asarray(Image.open(tmp_path / "out" / f"{stem}_seg.png"))
        assert labels.shape == Image.open(tmp_path / name).size[::-1]
        assert low < (labels == 1).mean() < high
        assert (tmp_path / "out" / f"{stem}_overlay.png").is_file()


def test_segment_single_dicom_slice(tmp_path: Path) -> None:
    source = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    done = esp_medsam("segment", source, "-m", "ct_liver", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    labels = nib.load(tmp_path / "CT_small_seg.nii.gz")
    assert labels.shape == (128, 128, 1)
    np.testing.assert_allclose(labels.header.get_zooms()[:2], (0.661468, 0.661468), rtol=1e-5)


def test_errors_are_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_text("not an image")
    for arguments in (
        ("segment", broken, "-m", "ct_liver", "-o", tmp_path / "out"),
        ("segment", broken, "-m", "ct_moon", "-o", tmp_path / "out"),
        ("evaluate", "--data", tmp_path / "absent", "-m", "ct_liver"),
        ("weights", "verify", "--bundle", tmp_path),
    ):
        done = esp_medsam(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert str(tmp_path) in done.stderr or "ct_moon" in done.stderr
