"""How many requests are worked on at the same time, how many wait, and who is sent away.

All of it happens on the event loop, so that there is no lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from esp_medsam_app.server.door.asgi_types import App, Message, Receive, Scope, Send
from esp_medsam_app.server.door.metrics import Metrics
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError
from esp_medsam_app.server.door.settings import DoorSettings

_SLOTS_A_DEVICE = 2
_FIRST_GUESS_SECONDS = 2.0
_NEWEST_COUNTS = 0.2
_LONGEST_WAIT_SECONDS = 120
# So long every place may be taken while none is given back: a large volume takes minutes on a CPU,
# other work has deadlines of its own, see `reading`.
_INFERENCE_SECONDS = 900.0
_WORK_SECONDS = 120.0


class Lane:
    """Places, and a queue before them: first come, first served.

    Args:
        name: for people.
        places: requests that are worked on at the same time.
        queue: requests that may wait.
        patience: seconds after which places that are all taken, and none given back, are stuck.
    """

    def __init__(
        self, name: str, places: int, queue: int, patience: float = _INFERENCE_SECONDS
    ) -> None:
        self.name = name
        self.places = places
        self.queue = queue
        self.patience = patience
        self.running = 0
        self._moved = time.monotonic()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = _FIRST_GUESS_SECONDS

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether the next request would be sent away."""
        return self.running >= self.places and self.waiting >= self.queue

    @property
    def is_stuck(self) -> bool:
        """Whether every place is taken, and none was given back for longer than work takes."""
        held = time.monotonic() - self._moved
        return self.running >= self.places and held > self.patience

    def retry_after(self) -> int:
        """When there should be a place, seconds: by how long requests took of late."""
        turns = (self.waiting + 1) / self.places
        return max(1, min(_LONGEST_WAIT_SECONDS, math.ceil(self._seconds * turns)))

    async def enter(self, left: asyncio.Future[None]) -> None:
        """Take a place, after those who came before.

        Args:
            left: done when the client has gone.

        Raises:
            RefusedError: 429 where the queue is full.
            ClientLeftError: the client went while it waited.
        """
        if self.running < self.places and not self._waiting:
            self.running += 1
            self._moved = time.monotonic()
            return
        if self.waiting >= self.queue:
            seconds = self.retry_after()
            raise RefusedError(
                429,
                f"The server is busy: {self.running} requests are worked on and {self.waiting} "
                f"wait. Try again in {seconds} s.",
                {"retry-after": str(seconds)},
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait({turn, left}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._withdraw(turn)
            raise
        if not turn.done():
            self._withdraw(turn)
            raise ClientLeftError

    def leave(self, seconds: float) -> None:
        """Give the place to the next one.

        Args:
            seconds: that it was taken for.
        """
        self._seconds += _NEWEST_COUNTS * (seconds - self._seconds)
        self._moved = time.monotonic()
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _withdraw(self, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self._pass_on()
        elif turn in self._waiting:
            self._waiting.remove(turn)


class TwoLanes:
    """One of inferences and one of all other work, so that these do not wait for devices.

    Args:
        settings: how many requests at the same time, and how many may wait.
    """

    def __init__(self, settings: DoorSettings) -> None:
        slots = settings.infer_slots or _SLOTS_A_DEVICE * _devices()
        self.inferences = Lane("inference", slots, settings.infer_queue)
        self.work = Lane("work", settings.work_slots, settings.work_queue, _WORK_SECONDS)

    @property
    def places(self) -> int:
        """Requests that are worked on at the same time."""
        return self.inferences.places + self.work.places

    def of(self, scope: Scope) -> Lane:
        """The lane of a request."""
        is_inference = scope["method"] == "POST" and scope["path"].startswith("/infer/")
        return self.inferences if is_inference else self.work


class Lanes:
    """Sends each request through a lane. Its place is free again when its answer begins.

    Whoever reads the answer slowly thus keeps nobody from a device.

    Args:
        app: gets the requests.
        choose: the lane of a request.
        metrics: where those are counted that did not get through.
    """

    def __init__(self, app: App, choose: Callable[[Scope], Lane], metrics: Metrics) -> None:
        self._app = app
        self._choose = choose
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lane = self._choose(scope)
        left = asyncio.ensure_future(_gone(receive))
        try:
            await lane.enter(left)
        except RefusedError:
            self._metrics.refused.add(lane=lane.name)
            raise
        except ClientLeftError:
            self._metrics.left.add(lane=lane.name)
            raise
        finally:
            left.cancel()
        started, gone = time.monotonic(), False

        def leave() -> None:
            nonlocal gone
            if not gone:
                gone = True
                lane.leave(time.monotonic() - started)

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                leave()
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        finally:
            leave()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
