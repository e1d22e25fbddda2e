"""Which device a request runs on, where there are several."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

# what viewers send for "any GPU"
_ANY = (None, "", "auto", "cuda")


@lru_cache(maxsize=1)
def gpu_count() -> int:
    """How many there are; torch opens NVIDIA's library for each look."""
    return torch.cuda.device_count()


class DeviceLoads:
    """Counts the requests on each device, and gives the next one to the idlest.

    Args:
        devices: their names, `cuda:0`, `cuda:1`, ...; fewer than two: there is no choice.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._running = dict.fromkeys(devices, 0)
        self._counting = threading.Lock()

    @classmethod
    def of_server(cls, device: str) -> DeviceLoads:
        """All GPUs, if the server's device is `auto` or `cuda`; else no choice."""
        count = torch.cuda.device_count() if device in _ANY else 0
        return cls([f"cuda:{number}" for number in range(count)])

    @contextmanager
    def chosen(self, wanted: Any) -> Iterator[Any]:
        """The device for the time of a block.

        Args:
            wanted: what the request says; a certain device is taken as it is.
        """
        if isinstance(wanted, list | tuple):
            wanted = wanted[0] if wanted else None
        device = wanted
        with self._counting:
            if wanted in _ANY and len(self._running) > 1:
                device = min(self._running, key=self._running.__getitem__)
            # whatever else was sent is told to be no device later
            counted = isinstance(device, str) and device in self._running
            if counted:
                self._running[device] += 1
        try:
            yield device
        finally:
            if counted:
                with self._counting:
                    self._running[device] -= 1
