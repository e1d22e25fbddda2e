"""`esp-medsam calibrate`: a limit in the bundle, and masks that are empty by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_starter import small_starter

from esp_medsam_app.cli import main
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.networks.esp_medsam import Design
from esp_medsam_app.samples.phantoms import nuclei
from esp_medsam_app.training.starting import new_network
from esp_medsam_app.weights import load_bundle, save_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM

NUCLEI = "microscopy_nuclei"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_starter(tmp_path / "bundle")


def drawn(folder: Path, pictures: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name, (pixels, labels) in pictures.items():
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    return folder


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """Nuclei."""
    found = {f"nuclei{n}": nuclei(n, 96, 96, 6) for n in range(3)}
    return drawn(tmp_path / "cases", {k: (v.pixels, v.labels) for k, v in found.items()})


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """Pictures without a nucleus in which the weights find one."""
    rows, columns = np.mgrid[:48, :48]
    pictures = {}
    for size in (4, 8, 16):
        grey = 200 - 180 * np.exp(-((rows - 24) ** 2 + (columns - 24) ** 2) / (2 * size**2))
        pictures[f"shadow{size}"] = (grey.astype(np.uint8), np.zeros((48, 48), np.uint8))
    return drawn(tmp_path / "shadows", pictures)


def calibrate(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "-m", NUCLEI, "--device", "cpu", *map(str, arguments)])
    return int(stopped.value.code or 0)


def marked(bundle: Path, folder: Path) -> int:
    segmenter = Segmenter(load_bundle(bundle), device="cpu")
    return sum(
        segmenter.segment(read_image(p), NUCLEI).any() for p in (folder / "images").iterdir()
    )


def test_what_holds_nothing_is_empty_afterwards(
    bundle: Path, cases: Path, shadows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (marked(bundle, shadows), marked(bundle, cases)) == (3, 3)
    both = ("--data", cases, "--data", shadows)
    assert calibrate(*both, "--bundle", bundle) == 0
    assert "of the slices without it 100.0% were marked, 0.0% are" in capsys.readouterr().out
    assert list(load_bundle(bundle).description.presence) == [NUCLEI]
    assert (marked(bundle, shadows), marked(bundle, cases)) == (0, 3)
    # fitted anew it is the same; without anything to hold back there is none
    fitted = load_bundle(bundle).description.presence
    assert calibrate(*both, "--bundle", bundle) == 0
    assert load_bundle(bundle).description.presence == fitted
    assert calibrate("--data", cases, "--bundle", bundle) == 0
    assert "no limit. Dice" in capsys.readouterr().out
    assert load_bundle(bundle).description.presence == {}


def test_a_design_without_sppg_is_refused(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modality = load_bundle().modality(NUCLEI)
    network = new_network(LITE_MEDSAM, [modality], design=Design(patch_prompt=False))
    save_bundle(
        tmp_path / "blind", network, [modality], name="b", backbone=LITE_MEDSAM, training={}
    )
    assert calibrate("--data", cases, "--bundle", tmp_path / "blind") == 2
    assert "no SPPG" in capsys.readouterr().err
