"""`esp-medsam distill`: the three stages in a row, on pictures of a block and a tiny SAM ViT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT

from esp_medsam_app.cli import main
from esp_medsam_app.weights import load_bundle
from esp_medsam_app.weights.backbones import LITE_MEDSAM, load_encoder, read_own_backbone
from esp_medsam_app.weights.sam_teachers import load_sam_teacher

TINY = ("--set", "views=2", "--set", "decoder_steps=0", "--set", "joint_steps=2",
        "--set", "joint_batch=1", "--device", "cpu")  # fmt: skip
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    labels = np.zeros((48, 64), np.uint8)
    labels[10:30, 20:40] = 1
    noise = np.random.default_rng(0).normal(0, 8, labels.shape)
    Image.fromarray((60 + 120 * labels + noise).astype(np.uint8)).save(folder / "images" / "a.png")
    Image.fromarray(labels).save(folder / "labels" / "a.png")
    return folder


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    """A checkpoint like SAM's, of a ViT with its grid of 64 x 64 and hardly any weights."""
    torch.manual_seed(0)
    vit = ImageEncoderViT(
        img_size=256, patch_size=4, embed_dim=16, depth=2, num_heads=2, out_chans=256,
        use_rel_pos=True, window_size=14, global_attn_indexes=(),
    )  # fmt: skip
    state = {f"image_encoder.{name}": value for name, value in vit.state_dict().items()}
    torch.save(state, tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def distill(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["distill", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_teacher_then_controllers(cases: Path, tmp_path: Path) -> None:
    data = ("--data", f"dermoscopy={cases}")
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert distill("teacher", *data, "-o", teacher, "--work", tmp_path / "t", *TINY) == 0
    assert distill("controllers", "--teacher", teacher, *data, "-o", student,
                   "--work", tmp_path / "c", *TINY) == 0  # fmt: skip
    taught, bundle = load_bundle(teacher), load_bundle(student)
    for written in (taught, bundle):
        written.verify()
    # the teacher's encoder learned; the student's is the released one, with the teacher's decoder
    released = load_encoder(LITE_MEDSAM)(IMAGE)
    assert not torch.allclose(taught.load_network().embed(IMAGE, "dermoscopy"), released, atol=1e-3)
    network, with_decoder = bundle.load_network(), taught.load_network()
    assert torch.equal(network.encoder(IMAGE), released)
    embedding = torch.rand(1, 256, 8, 8)
    assert torch.equal(network.decode(embedding, "dermoscopy")[0],
                       with_decoder.decode(embedding, "dermoscopy")[0])  # fmt: skip
    # what has controllers is no teacher
    assert distill("controllers", "--teacher", student, *data, "-o", tmp_path / "x", *TINY) == 2


def test_a_sam_teacher(
    cases: Path, sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", f"dermoscopy={cases}")
    whole = (*TINY, "--set", "cached_stage=0")
    teacher = tmp_path / "teacher"
    stage = ("teacher", *data, "-o", teacher, "--work", tmp_path / "t", "--sam", sam)
    assert distill(*stage, *TINY) == 2
    assert "cached_stage=0" in capsys.readouterr().err
    assert distill(*stage, *whole) == 0
    network, modalities = load_sam_teacher(teacher, sam)
    assert [modality.name for modality in modalities] == ["dermoscopy"]
    adapters = [p for name, p in network.named_parameters() if "expert.lin2.weight" in name]
    assert all(p.abs().max() > 0 for p in adapters)
    stage = ("controllers", "--teacher", teacher, *data, "-o", tmp_path / "student",
             "--work", tmp_path / "c", *whole)  # fmt: skip
    assert distill(*stage) == 2
    assert "--sam" in capsys.readouterr().err
    assert distill(*stage, "--sam", sam) == 0
    load_bundle(tmp_path / "student").verify()


def test_common_knowledge_makes_a_backbone(
    cases: Path, sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "own.safetensors"
    assert distill("common", "--images", cases / "images", "--sam", sam, "-o", output,
                   "--work", tmp_path / "w", "--name", "mine", *TINY) == 0  # fmt: skip
    backbone = read_own_backbone(output)
    assert (backbone.name, backbone.stem_stride, backbone.input_size) == ("mine", 1, 256)
    with torch.no_grad():
        assert not torch.equal(load_encoder(backbone)(IMAGE), load_encoder(LITE_MEDSAM)(IMAGE))
    # a bundle on it carries it along
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data", f"dermoscopy={cases}", "-o", str(out), "--backbone", str(output),
              "--work", str(tmp_path / "t"), *TINY])  # fmt: skip
    assert not stopped.value.code
    output.unlink()
    bundle = load_bundle(out)
    bundle.verify()
    assert bundle.description.backbone.name == "mine"
    assert bundle.load_network().modalities == ["dermoscopy"]
