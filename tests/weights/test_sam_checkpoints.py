"""Checkpoints of segment-anything: what they hold shows in their shapes; others are refused."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.networks.sam_teacher import SamAdapters, SamTeacher
from esp_medsam_app.weights import sam_checkpoints
from esp_medsam_app.weights.sam_checkpoints import (
    RELEASES,
    SamArchitecture,
    load_sam_encoder,
    release_of,
)


def random_vit(
    dim: int = 24, depth: int = 3, heads: int = 3, img_size: int = 64, window: int = 3
) -> ImageEncoderViT:
    with torch.device("meta"):  # torch's own initialisation is slow
        vit = ImageEncoderViT(
            img_size=img_size,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            out_chans=256,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window,
            global_attn_indexes=(depth - 1,),
        )
    vit = vit.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.uniform_(-0.1, 0.1, generator=generator)
    return vit.eval()


def checkpoint_of(vit: ImageEncoderViT) -> dict[str, Tensor]:
    """As a `Sam` has them: the ViT's names among others."""
    tensors = {f"image_encoder.{name}": tensor for name, tensor in vit.state_dict().items()}
    return {"mask_decoder.iou_token.weight": torch.zeros(1, 256)} | tensors


@pytest.fixture
def checkpoint() -> dict[str, Tensor]:
    return checkpoint_of(random_vit())


def saved(tensors: object, folder: Path) -> Path:
    path = folder / "sam.pth"
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("kind", ["plain", "with optimiser", "legacy", "safetensors"])
def test_loads_the_same_function(kind: str, tmp_path: Path) -> None:
    vit = random_vit()
    tensors = checkpoint_of(vit)
    path = tmp_path / ("sam.safetensors" if kind == "safetensors" else "sam.pth")
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "with optimiser":
        torch.save({"model": tensors, "optimizer": {"state": {}}, "epoch": 3}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind != "legacy")
    found = load_sam_encoder(path)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found(image), vit(image))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_half_precision_is_widened(checkpoint: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved({name: tensor.half() for name, tensor in checkpoint.items()}, tmp_path)
    assert {parameter.dtype for parameter in load_sam_encoder(path).parameters()} == {torch.float32}


def test_vit_b_of_another_image_size(tmp_path: Path) -> None:
    """Windows of 14 that are larger than the grid of 4 are told from global attention."""
    vit = random_vit(dim=768, depth=12, heads=12, window=14)
    found = load_sam_encoder(saved(checkpoint_of(vit), tmp_path))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found(image), vit(image))
    assert repr(found) == repr(vit)


@pytest.mark.parametrize(
    ("name", "heads", "global_blocks", "adapters"),
    [
        ("vit_b", 12, (2, 5, 8, 11), 56_687_628),
        ("vit_l", 16, (5, 11, 17, 23), 201_498_648),
        ("vit_h", 16, (7, 15, 23, 31), 419_717_152),
    ],
)
def test_released_sizes(
    name: str, heads: int, global_blocks: tuple[int, ...], adapters: int
) -> None:
    """By the shapes alone: no memory is taken."""
    with torch.device("meta"):
        vit = sam_model_registry[name]().image_encoder
        found = SamArchitecture.of(vit.state_dict())
        built = found.build()
        own = SamAdapters(built)
        SamTeacher(built, own)
    assert (found.img_size, found.window) == (1024, 14)
    assert (found.heads, found.global_blocks) == (heads, global_blocks)
    assert repr(built) == repr(vit)  # widths, LayerNorm's epsilon
    assert [b.window_size for b in built.blocks] == [b.window_size for b in vit.blocks]
    shapes = {key: value.shape for key, value in built.state_dict().items()}
    assert shapes == {key: value.shape for key, value in vit.state_dict().items()}
    assert sum(parameter.numel() for parameter in own.parameters()) == adapters


@pytest.mark.parametrize("window", [0, 4])
def test_global_attention_alone(window: int, tmp_path: Path) -> None:
    """A window as large as the grid cannot be told from none, and need not."""
    vit = random_vit(window=window)
    found = load_sam_encoder(saved(checkpoint_of(vit), tmp_path))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found(image), vit(image))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"absent{suffix}"
    with pytest.raises(WeightsError, match=r"absent.*sam_vit_b_01ec64\.pth") as caught:
        load_sam_encoder(path)
    assert caught.value.path == path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(share: float, kind: str, checkpoint: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / ("sam.safetensors" if kind == "safetensors" else "sam.pth")
    if kind == "safetensors":
        save_file(checkpoint, path)
    else:
        torch.save(checkpoint, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"not a readable .*download it again"):
        load_sam_encoder(path)


@pytest.mark.parametrize("place", range(0, 1000, 40))
def test_damaged(place: int, checkpoint: dict[str, Tensor], tmp_path: Path) -> None:
    """Bytes of the pickle overwritten: never anything but an explained error."""
    path = tmp_path / "sam.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="download it again"):
        load_sam_encoder(path)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_sam_encoder(tmp_path)


def test_code_is_not_run(tmp_path: Path) -> None:
    target = tmp_path / "touched"

    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (target,))

    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_sam_encoder(saved({"image_encoder.pos_embed": Harmful()}, tmp_path))
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "with nothing"),
        ({"vision_encoder.pos_embed": torch.zeros(1)}, "with vision_encoder"),
        ({1: torch.zeros(1)}, "no tensor's name begins"),
        ([1, 2], "not a state dict"),
        ({"image_encoder.trunk.pos_embed": torch.zeros(1)}, "pos_embed is missing"),
    ],
)
def test_other_checkpoints(content: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=problem) as caught:
        load_sam_encoder(saved(content, tmp_path))
    assert caught.value.remedy


def test_a_students_checkpoint(tmp_path: Path) -> None:
    """LiteMedSAM's and MobileSAM's names begin alike."""
    from esp_medsam_app.networks import TinyViT

    tensors = {f"image_encoder.{k}": v for k, v in TinyViT(1).state_dict().items()}
    with pytest.raises(WeightsError, match="not a segment-anything ViT"):
        load_sam_encoder(saved(tensors, tmp_path))


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("pos_embed", (1, 4, 5, 24), "not square"),
        ("pos_embed", (1, 4, 4), "has the shape"),
        ("pos_embed", (1, 0, 0, 24), "has the shape"),
        ("pos_embed", (1, 4, 4, 25), "not a multiple"),
        ("blocks.1.attn.rel_pos_h", (), "has the shape"),
        ("blocks.1.attn.rel_pos_h", (6, 8), "has the shape"),
        ("blocks.1.attn.rel_pos_h", (3, 8), "several sizes"),
        ("blocks.1.attn.rel_pos_w", (3, 8), "do not fit"),
        ("blocks.2.mlp.lin1.weight", (96, 25), "do not fit"),
        ("neck.3.extra", (1,), "unknown neck.3.extra"),
    ],
)
def test_shapes_that_make_no_vit(
    name: str,
    shape: tuple[int, ...],
    problem: str,
    checkpoint: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    checkpoint[f"image_encoder.{name}"] = torch.zeros(shape)
    with pytest.raises(WeightsError, match=problem):
        load_sam_encoder(saved(checkpoint, tmp_path))


def test_every_tensor_is_needed(checkpoint: dict[str, Tensor], tmp_path: Path) -> None:
    for name in [name for name in checkpoint if name.startswith("image_encoder.")]:
        rest = {other: tensor for other, tensor in checkpoint.items() if other != name}
        with pytest.raises(WeightsError):
            load_sam_encoder(saved(rest, tmp_path))


def test_release_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(digest) == 64 for digest in RELEASES.values())
    path = tmp_path / "renamed.pth"
    path.write_bytes(b"weights")
    assert release_of(path) is None
    known = {"sam_vit_b_01ec64.pth": hashlib.sha256(b"weights").hexdigest()}
    monkeypatch.setattr(sam_checkpoints, "RELEASES", known)
    assert release_of(path) == "sam_vit_b_01ec64.pth"
