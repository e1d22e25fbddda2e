"""Checkpoints of segment-anything (SAM, MedSAM) that the user downloaded: the teacher's ViT.

Such a file is the state dict of a whole `Sam`; its ViT's names begin with `image_encoder.`. The
architecture is not written in it but shows in the shapes: `pos_embed` has the grid (64 x 64 for
an image of 1024), the relative positions of a block the size of its window (2 x 14 - 1 entries,
or 2 x 64 - 1 for global attention) and the width of a head. Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.weights.integrity import (
    load_strictly,
    read_checkpoint,
    read_safetensors,
    sha256_of,
)

# SHA-256 of the files that segment-anything's authors released (Apache-2.0).
RELEASES = {
    "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
}
PREFIX = "image_encoder."
_REMEDY = (
    "Give a segment-anything checkpoint such as sam_vit_b_01ec64.pth or medsam_vit_b.pth; "
    "if this should be one, download it again"
)
# The tensors that tell the architecture, and their dimensions.
_TELLING = {
    "pos_embed": 4,
    "patch_embed.proj.weight": 4,
    "blocks.0.attn.rel_pos_h": 2,
    "blocks.0.mlp.lin1.weight": 2,
    "neck.0.weight": 4,
}


@dataclass(frozen=True)
class SamArchitecture:
    """What `ImageEncoderViT` is built from.

    Attributes:
        img_size: side of the input, pixels.
        patch_size: side of a patch, pixels.
        dim: width of the blocks.
        depth: number of blocks.
        heads: of each block's attention.
        mlp_ratio: hidden width of the MLPs over `dim`.
        window: side of the windows, patches; 0 where all blocks attend globally.
        global_blocks: indices of the blocks that attend to the whole grid.
        channels: of the embedding.
    """

    img_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    mlp_ratio: float
    window: int
    global_blocks: tuple[int, ...]
    channels: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SamArchitecture:
        """Find the architecture in the shapes of a ViT's state dict.

        Raises:
            ValueError: no ViT of segment-anything; says why.
        """
        for name, dimensions in _TELLING.items():
            if name not in tensors:
                raise ValueError(f"{name} is missing")
            if tensors[name].ndim != dimensions or 0 in tensors[name].shape:
                raise ValueError(f"{name} has the shape {list(tensors[name].shape)}")
        _, grid, columns, dim = tensors["pos_embed"].shape
        if grid != columns:
            raise ValueError(f"the grid of {grid} x {columns} patches is not square")
        head_dim = tensors["blocks.0.attn.rel_pos_h"].shape[1]
        if dim % head_dim:
            raise ValueError(f"the width {dim} is not a multiple of the heads' {head_dim}")
        windows = _windows(tensors)
        # A window of the grid's size is what global attention looks at, too.
        global_blocks = tuple(index for index, side in enumerate(windows) if side == grid)
        local = sorted(set(windows) - {grid})
        if len(local) > 1:
            raise ValueError(f"the blocks have windows of several sizes, {local}")
        patch_size = tensors["patch_embed.proj.weight"].shape[-1]
        return cls(
            img_size=patch_size * grid,
            patch_size=patch_size,
            dim=dim,
            depth=len(windows),
            heads=dim // head_dim,
            mlp_ratio=tensors["blocks.0.mlp.lin1.weight"].shape[0] / dim,
            window=local[0] if local else 0,
            global_blocks=global_blocks,
            channels=tensors["neck.0.weight"].shape[0],
        )

    def build(self) -> ImageEncoderViT:
        """The network with random weights, on torch's default device."""
        return ImageEncoderViT(
            img_size=self.img_size,
            patch_size=self.patch_size,
            embed_dim=self.dim,
            depth=self.depth,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            out_chans=self.channels,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=self.window,
            global_attn_indexes=self.global_blocks,
        )


def load_sam_encoder(path: str | Path) -> ImageEncoderViT:
    """The ViT of a segment-anything checkpoint, on the CPU, in evaluation mode and frozen.

    SAM's and MedSAM's files look the same and want different input: `networks.sam_teacher.
    SamInput(size)` for SAM's, `SamInput.unit(size)` for MedSAM's. Whose it is, the caller knows.

    Args:
        path: `.pth`, or `.safetensors` with the same names.

    Raises:
        WeightsError: missing, damaged, or not such a checkpoint.
    """
    path = Path(path)
    tensors = _vit_tensors(path)
    try:
        architecture = SamArchitecture.of(tensors)
    except ValueError as error:
        raise WeightsError(
            f"its image encoder is not a segment-anything ViT: {error}", path=path, remedy=_REMEDY
        ) from error
    # Empty, as all is overwritten: filling 637 M weights with random numbers takes long.
    with torch.device("meta"):
        encoder = architecture.build()
    encoder = encoder.to_empty(device="cpu")
    load_strictly(encoder, tensors, path)
    return encoder.eval().requires_grad_(False)


def release_of(path: str | Path) -> str | None:
    """Name of the released file that this one is a copy of, whatever it is called now.

    Raises:
        WeightsError: missing or cannot be read.
    """
    digest = sha256_of(Path(path))
    return next((name for name, known in RELEASES.items() if known == digest), None)


def _vit_tensors(path: Path) -> dict[str, Tensor]:
    """The ViT's state dict out of a checkpoint."""
    read = read_safetensors if path.suffix.lower() == ".safetensors" else read_checkpoint
    try:
        tensors = read(path)
    except WeightsError as error:
        raise WeightsError(error.problem, path=path, remedy=_REMEDY) from error
    found = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if str(name).startswith(PREFIX)
    }
    if not found:
        others = sorted({str(name).split(".")[0] for name in tensors})[:3]
        raise WeightsError(
            f"no tensor's name begins with {PREFIX!r} (but with {', '.join(others) or 'nothing'})",
            path=path,
            remedy=_REMEDY,
        )
    return found


def _windows(tensors: Mapping[str, Tensor]) -> list[int]:
    """Side of what each block attends to, in patches.

    Raises:
        ValueError: relative positions of another kind.
    """
    windows: list[int] = []
    while (name := f"blocks.{len(windows)}.attn.rel_pos_h") in tensors:
        shape = tensors[name].shape
        if len(shape) != 2 or shape[0] % 2 == 0:
            raise ValueError(f"{name} has the shape {list(shape)}")
        windows.append((shape[0] + 1) // 2)
    return windows
