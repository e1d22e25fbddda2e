"""Where to compute, and with which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from esp_medsam_app.errors import InputError

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# From this on NVIDIA's GPUs have units for products in float16.
_FLOAT16_SINCE = (7, 0)


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name; `auto` takes the first GPU there is, else the CPU.

    Raises:
        InputError: no such device, or it cannot be used here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # the first sentence; a list of all backends may follow
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else "it is not there"
        raise InputError(
            f"device {name!r} cannot be used: {reason}",
            remedy="Use auto or cpu, or see `esp-medsam doctor`",
        ) from error
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on a device now; none where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch has taken from the GPU and does not use
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    told = (line.split() for line in lines)
    return next((int(words[1]) * 1024 for words in told if words[0] == "MemAvailable:"), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what lacked, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the CPU allocator has no exception class of its own
    return isinstance(error, RuntimeError) and (
        "allocate memory" in str(error) or "out of memory" in str(error)
    )


def choose_precision(name: str, device: torch.device, runtime: str = "torch") -> torch.dtype:
    """The type to segment in: `float32`, `bfloat16`, `float16`, or `auto`.

    `auto` takes bfloat16 where the device is fast at it, else float16, else float32. bfloat16 comes
    first as it cannot overflow, whatever was trained. Under `openvino` it takes float32: what that
    rounds by itself changes masks too much (docs/performance.md).

    Raises:
        InputError: no such precision.
    """
    if name == "auto":
        if runtime == "openvino":
            return torch.float32
        own = autocast_type(device)
        if own is None and _multiplies_float16(device):
            return torch.float16
        return own or torch.float32
    if name not in _PRECISIONS:
        raise InputError(
            f"there is no precision {name!r}", remedy=f"Use auto, {', '.join(_PRECISIONS)}"
        )
    return _PRECISIONS[name]


def precision_for(asked: str, usual: torch.dtype, *, needs_float32: bool) -> torch.dtype:
    """What a modality computes in: an exception from the usual, where none was asked for."""
    return torch.float32 if asked == "auto" and needs_float32 else usual


def cast_to(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """A context in which products on this device are of this type."""
    if dtype is torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context of `autocast_type`'s precision on this device."""
    return cast_to(autocast_type(device) or torch.float32, device)


def autocast_type(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies in it, else none (float32). Trainings compute in it.

    On CPUs without the instructions, bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and _cpu_multiplies_bfloat16():
        return torch.bfloat16
    return None


def _multiplies_float16(device: torch.device) -> bool:
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= _FLOAT16_SINCE


def _cpu_multiplies_bfloat16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported is not None and supported())
