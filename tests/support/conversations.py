"""Several requests at a time to an application in this process, on one event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from monailabel.app import app as endpoints
from support.fake_server import FakeSegmenters

from esp_medsam_app.server.plain_server import unblock

SECONDS = 30


class Gate:
    """Holds inferences up until it is opened."""

    def __init__(self, segmenters: FakeSegmenters, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.most = 0
        self._opened = threading.Event()
        self._inside = 0
        self._counting = threading.Lock()
        segment = segmenters.segment

        def held_up(*arguments: Any) -> Any:
            with self._counting:
                self._inside += 1
                self.most = max(self.most, self._inside)
            self.entered.release()
            assert self._opened.wait(SECONDS)
            with self._counting:
                self._inside -= 1
            return segment(*arguments)

        monkeypatch.setattr(segmenters, "segment", held_up)

    def open(self) -> None:
        self._opened.set()

    async def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=SECONDS)


def talk(app: Any, conversation: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Run a conversation with an application on one event loop, as a server does."""

    async def run() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await conversation(client)

    asyncio.run(asyncio.wait_for(run(), SECONDS))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@contextmanager
def unblocked() -> Iterator[None]:
    """MONAI Label's endpoints as a server has them that was started without the front door."""

    async def start() -> None:
        unblock(endpoints)

    before = list(endpoints.router.routes)
    asyncio.run(start())
    try:
        yield
    finally:
        endpoints.router.routes[:] = before
