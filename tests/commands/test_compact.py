"""The compact profile: distilled, merged, chosen by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esp_medsam_app.cli import main
from esp_medsam_app.commands import runtime
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.inference import Segmenter
from esp_medsam_app.weights import Bundle, load_bundle, profiles
from esp_medsam_app.weights.backbones import LITE_MEDSAM, load_encoder
from esp_medsam_app.weights.bundle import save_description, starter_bundle_path
from esp_medsam_app.weights.versions import open_versions

TINY = ("--set", "views=1", "--set", "steps=1", "--set", "batch=1", "--set", "size=56",
        "--device", "cpu")  # fmt: skip


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Bundle]:
    """What `distill compact` makes of a modality of the starter bundle, once."""
    made: dict[str, Bundle] = {}
    folder = tmp_path_factory.mktemp("compact")

    def of(cases: Path, modality: str) -> Bundle:
        if modality not in made:
            out = folder / modality
            assert command("distill", "compact", "--teacher", starter_bundle_path(), "--data",
                           f"{modality}={cases}", "-o", out, "--work", folder / f"{modality}_work",
                           *TINY) == 0  # fmt: skip
            made[modality] = load_bundle(out)
        return made[modality]

    return of


def test_a_bundle_of_a_smaller_input_comes_out(
    cases: Path, distilled: Callable[[Path, str], Bundle]
) -> None:
    bundle, starter = distilled(cases, "dermoscopy"), load_bundle()
    bundle.verify()
    said = bundle.description
    assert (said.input_size, said.name, list(bundle.modalities)) == (56, "compact", ["dermoscopy"])
    assert said.backbone == starter.description.backbone
    assert bundle.backbone.input_size == 56
    # the very files: decoder and classifier
    for file in ("decoder.safetensors", "modality_classifier.safetensors"):
        assert said.files[file] == starter.description.files[file]
    own = "controllers/dermoscopy.safetensors"
    assert said.files[own] != starter.description.files[own]
    (run,) = said.training["runs"]
    assert (run["teacher"], run["recipe"]["steps"]) == ("starter", 1)
    network = bundle.load_network()
    released = load_encoder(LITE_MEDSAM).state_dict()
    assert all(torch.equal(network.encoder.state_dict()[key], released[key]) for key in released)
    image = read_image(cases / "images" / "a.png")
    fast, plain = (
        Segmenter(bundle, device="cpu", precision="float32", fast=fast) for fast in (True, False)
    )
    found, wanted = (way.segment(image, "dermoscopy") for way in (fast, plain))
    assert (found != wanted).mean() < 0.001


def test_its_versions_are_kept_apart(
    cases: Path, distilled: Callable[[Path, str], Bundle], tmp_path: Path
) -> None:
    full = Bundle(tmp_path / "copy", load_bundle().description)
    compact = distilled(cases, "dermoscopy")
    folders = {open_versions(tmp_path, bundle).path for bundle in (load_bundle(), full, compact)}
    assert len(folders) == 3


def test_what_is_trained_on_it_has_its_input(
    cases: Path, distilled: Callable[[Path, str], Bundle], tmp_path: Path
) -> None:
    bundle = distilled(cases, "dermoscopy")
    assert command("train", "--data", f"dermoscopy={cases}", "--start", bundle.path, "-o",
                   tmp_path / "more", "--work", tmp_path / "w", "--set", "views=1", "--set",
                   "decoder_steps=0", "--set", "joint_steps=1", "--set", "joint_batch=1",
                   "--device", "cpu") == 0  # fmt: skip
    assert load_bundle(tmp_path / "more").description.input_size == 56


def test_modalities_of_several_runs_make_one_bundle(
    cases: Path,
    distilled: Callable[[Path, str], Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = [distilled(cases, name) for name in ("dermoscopy", "colonoscopy")]
    parts[1].description.presence = {"colonoscopy": 0.5}
    save_description(parts[1])
    folders = [part.path for part in parts]
    assert command("weights", "merge", *folders, "-o", tmp_path / "all", "--name", "two") == 0
    merged = load_bundle(tmp_path / "all")
    merged.verify()
    assert (merged.description.name, merged.description.input_size) == ("two", 56)
    assert merged.description.presence == {"colonoscopy": 0.5}
    assert merged.description.modality_classifier is not None
    assert len(merged.description.training["runs"]) == 2
    image = torch.rand(1, 3, 56, 56)
    for part, name in zip(parts, ("dermoscopy", "colonoscopy"), strict=True):
        wanted = part.load_network()(image, name).mask_logits
        assert torch.equal(merged.load_network()(image, name).mask_logits, wanted)
    # one modality twice, another input, itself
    assert command("weights", "merge", folders[0], folders[0], "-o", tmp_path / "x") == 2
    assert "already" in capsys.readouterr().err
    assert command("weights", "merge", folders[0], starter_bundle_path(), "-o", tmp_path / "x") == 2
    assert "its input is another" in capsys.readouterr().err
    assert command("weights", "merge", folders[0], "-o", folders[0]) == 2


@pytest.mark.parametrize(
    ("size", "said"), [("256", "below the teacher's 256"), ("100", "multiple of 8")]
)
def test_sizes_that_are_refused(
    cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str, said: str
) -> None:
    assert command("distill", "compact", "--teacher", starter_bundle_path(), "--data",
                   f"dermoscopy={cases}", "-o", tmp_path / "o", "--work", tmp_path / "w",
                   "--set", f"size={size}") == 2  # fmt: skip
    assert said in capsys.readouterr().err


def test_a_profile_is_chosen_by_name(
    cases: Path,
    distilled: Callable[[Path, str], Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(profiles, "starter_bundle_path", lambda: tmp_path / "starter")
    options = ("segment", cases / "images" / "a.png", "-m", "dermoscopy", "-o", tmp_path / "out")
    assert command(*options, "--profile", "compact") == 2
    told = capsys.readouterr().err
    assert "train_compact.sh" in told
    assert "starter_compact" in told
    assert command(*options, "--profile", "desam") == 2
    assert "train_desam.sh" in capsys.readouterr().err
    assert command(*options, "--profile", "tiny") == 2
    assert "full, compact, desam" in capsys.readouterr().err
    bundle = distilled(cases, "dermoscopy")
    shutil.copytree(bundle.path, tmp_path / "starter_compact")
    assert command(*options, "--profile", "compact", "--bundle", bundle.path) == 2
    assert "Leave one of them out" in capsys.readouterr().err
    assert command(*options, "--profile", "compact") == 0
    chosen = runtime.make_segmenter(None, "cpu", None, profile="compact")
    assert chosen.bundle.path == tmp_path / "starter_compact"
