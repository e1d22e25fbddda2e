"""What a training that ran out of memory says: what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from esp_medsam_app.errors import OutOfMemoryError

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


@contextmanager
def memory_explained(batch: int = 1) -> Iterator[None]:
    """A `with` block in which an error for lack of memory becomes one that says what to do.

    Args:
        batch: views of a step, where the block takes steps.

    Raises:
        OutOfMemoryError: in the place of torch's, Python's, and those of processes that it began.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ProcessRaisedException, ProcessExitedException) as error:
        if not _is_of_memory(error):
            raise
        raise OutOfMemoryError(
            "there is not enough memory for the training",
            remedy=(
                f"Set train_batch_size to {batch // 2}"
                if batch > 1
                else "Stop what else uses the device, or set device to cpu"
            ),
        ) from error


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, ProcessExitedException):
        # nobody but the system kills one of several processes
        return error.signal_name == "SIGKILL"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error).lower() for sign in _SIGNS)
