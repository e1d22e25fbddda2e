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
from scipy.ndimage import binary_dilation
from skimage.color import rgb2hed
from support.real_server import THIN

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


def test_evaluate_and_segment_a_volume(samples: Path, tmp_path: Path) -> None:
    """Both commands give the same label map, on the volume's very grid."""
    for part, source in (("images", "studies"), ("labels", "references")):
        (tmp_path / part).mkdir()
        volume = nib.load(samples / source / "abdomen_phantom.nii.gz").slicer[:, :, THIN]
        nib.save(volume, tmp_path / part / "thin.nii.gz")
    report, kept, out = (tmp_path / name for name in ("report.json", "kept", "out"))
    arguments = ("-m", "ct_liver", "--device", "cpu")
    done = esp_medsam(
        "evaluate", "--data", tmp_path, *arguments, "--json", report, "--predictions", kept
    )
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(report.read_text())
    assert content["dice"]["mean"] > 0.8
    assert content["hd95"]["unit"] == "mm"
    done = esp_medsam("segment", tmp_path / "images", *arguments, "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    image = nib.load(tmp_path / "images" / "thin.nii.gz")
    reference = np.asanyarray(nib.load(tmp_path / "labels" / "thin.nii.gz").dataobj) == 1
    for written in (kept / "thin.nii.gz", out / "thin_seg.nii.gz"):
        labels = nib.load(written)
        assert np.array_equal(labels.affine, image.affine)
        found = np.asanyarray(labels.dataobj) == 1
        assert found.shape == image.shape
        dice = 2 * (found & reference).sum() / (found.sum() + reference.sum())
        assert content["per_case"][0]["dice"] == float(dice)


def segmented(picture: Image.Image, modality: str, folder: Path) -> np.ndarray:
    source = folder / "picture.png"
    picture.save(source)
    done = esp_medsam("segment", source, "-m", modality, "-o", folder / "out", "--overlay")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "picture_overlay.png").is_file()
    labels = np.asarray(Image.open(folder / "out" / "picture_seg.png"))
    assert labels.shape == picture.size[::-1]
    return labels == 1


def test_vessels_of_a_real_retina(samples: Path, tmp_path: Path) -> None:
    """No reference exists; but vessels are darker in green than what lies around them."""
    retina = Image.open(samples / "studies" / "retina.jpg").resize((512, 512))
    vessels = segmented(retina, "fundus_vessels", tmp_path)
    assert 0.05 < vessels.mean() < 0.2
    green = np.asarray(retina)[..., 1].astype(float)
    around = binary_dilation(vessels, iterations=4) & ~binary_dilation(vessels, iterations=1)
    assert green[vessels].mean() < green[around].mean() - 5


def test_nuclei_of_real_tissue(samples: Path, tmp_path: Path) -> None:
    """No reference exists; but nuclei hold the haematoxylin. Connective tissue, as few of the
    brown gland's nuclei are found: the training images hold no such stain."""
    tissue = Image.open(samples / "studies" / "immunohistochemistry.png").crop((140, 230, 268, 512))
    nuclei = segmented(tissue, "microscopy_nuclei", tmp_path)
    assert 0.02 < nuclei.mean() < 0.4
    haematoxylin = rgb2hed(np.asarray(tissue))[..., 0]
    assert haematoxylin[nuclei].mean() > haematoxylin[~nuclei].mean() + haematoxylin.std() / 2


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
