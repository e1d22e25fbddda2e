"""Reading weight files: the right bytes, plain tensors only, clear errors."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.weights.compact import SCALE, restore

# what torch's unpickler trips over in bytes that were cut or changed
_DAMAGE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    struct.error,
    pickle.UnpicklingError,
)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in lower-case hex.

    Raises:
        WeightsError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise WeightsError(
            f"weight file cannot be read ({error.strerror})",
            path=path,
            remedy="Install the package again or restore the bundle",
        ) from error


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with the digest that was written down for it.

    Raises:
        WeightsError: missing or different.
    """
    found = sha256_of(path)
    if found != expected:
        raise WeightsError(
            f"weight file is damaged or was exchanged: SHA-256 is {found}, {expected} was expected",
            path=path,
            remedy="Install the package again or restore the bundle",
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, as float32 on the CPU; compacted ones are restored.

    Raises:
        WeightsError: missing, truncated, not safetensors, or without the scale of a matrix.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"not a readable safetensors file ({error})", path=path) from error
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and name + SCALE not in tensors:
            raise WeightsError(f"{name} was compacted, and its scale is missing", path=path)
    return restore(tensors)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself.

    Raises:
        WeightsError: missing, truncated or not safetensors.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"not a readable safetensors file ({error})", path=path) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """State dict of a `.pth` file, read without running any code from it.

    Raises:
        WeightsError: missing, damaged, or it holds more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError("there is no such checkpoint", path=path) from error
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"not a readable checkpoint ({reason})", path=path) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError("the checkpoint is not a state dict of tensors", path=path)
    return content


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """`load_state_dict` that names the first tensors that do not fit.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape.
    """
    own = module.state_dict()
    wrong = (
        [f"missing {name}" for name in own if name not in tensors]
        + [f"unknown {name}" for name in tensors if name not in own]
        + [
            f"{name} is {list(tensors[name].shape)} instead of {list(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
    )
    if wrong:
        raise WeightsError(
            f"{len(wrong)} tensors do not fit this network: {'; '.join(wrong[:3])}",
            path=path,
            remedy="The file was made for another model",
        )
    module.load_state_dict(dict(tensors))
