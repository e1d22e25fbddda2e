"""An ASGI application away from the event loop.

MONAI Label's endpoints are coroutines that block: on the server's event loop, one inference would
hold up every other request, the viewers' images among them. Here each request gets a thread with an
event loop of its own, which it may block as it likes.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

from esp_medsam_app.server.door.asgi_types import App, Message, Receive, Scope, Send
from esp_medsam_app.server.door.bodies import BODY, Body
from esp_medsam_app.server.door.refusal import ClientLeftError

_AWAY = "esp_medsam.off_the_loop"
_kept = threading.local()


def is_off_the_loop(scope: Scope) -> bool:
    """Whether a request is answered in a thread of its own already."""
    return bool(scope.get(_AWAY))


class OffTheLoop:
    """Runs an application in threads; the request's body has been read before, see `Bodies`.

    Args:
        app: whose coroutines may block. Its lifespan is not its own any more.
        threads: as many as requests may come at the same time, or some will wait unseen.
        seconds: how long a client may take nothing of its answer, which holds a thread meanwhile.
    """

    def __init__(self, app: App, threads: int, seconds: float = 60) -> None:
        self._app = app
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: Body = scope[BODY]
        main = asyncio.get_running_loop()
        context = contextvars.copy_context()
        await main.run_in_executor(
            self._pool, context.run, self._run, dict(scope), body, send, main
        )

    def close(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, scope: Scope, body: Body, send: Send, main: asyncio.AbstractEventLoop) -> None:
        async def receive() -> Message:
            message = body.next_message()
            if message is None:
                # that a client has left is noticed when it is answered
                await asyncio.Event().wait()
                raise AssertionError
            return message

        held: list[Message] = []

        async def pass_on(message: Message) -> None:
            # a beginning waits for what follows it: one way to the event loop for both
            held.append(message)
            if message["type"] != "http.response.start":
                await flush()

        async def flush() -> None:
            messages, held[:] = held[:], []
            sent = asyncio.run_coroutine_threadsafe(self._sent(send, messages), main)
            await asyncio.wrap_future(sent)

        async def answered() -> None:
            await self._app(scope, receive, pass_on)
            if held:
                await flush()

        scope.pop(BODY)
        scope[_AWAY] = True
        # threads keep their loops, which are dear to make
        loop: asyncio.AbstractEventLoop | None = getattr(_kept, "loop", None)
        if loop is None:
            loop = _kept.loop = asyncio.new_event_loop()
        loop.run_until_complete(answered())

    async def _sent(self, send: Send, messages: list[Message]) -> None:
        for message in messages:
            try:
                await asyncio.wait_for(send(message), self._seconds)
            except asyncio.TimeoutError:
                raise ClientLeftError from None
