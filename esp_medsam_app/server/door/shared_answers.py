"""Requests for the same thing at the same time get one answer.

Every viewer asks for `/info/` on connecting and while it is open. However many ask, it is computed
once at a time: whoever asks meanwhile gets the next answer, which begins after he has asked, so
that nobody is told less than what was there when he asked.
"""

from __future__ import annotations

import asyncio

from esp_medsam_app.server.door.asgi_types import App, Message, Receive, Scope, Send, header

# the same for all who may ask for it
_SHARED = ("/info", "/info/")


class SharedAnswers:
    """Passes one of several equal requests on; everything else as it is.

    Args:
        app: answers. Whoever is not allowed to ask has been refused before.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._next: dict[str, asyncio.Task[list[Message]]] = {}
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_shared(scope):
            await self._app(scope, receive, send)
            return
        path = str(scope["path"])
        task = self._next.get(path)
        if task is None:
            task = self._next[path] = asyncio.create_task(self._answer(path, scope))
        # the others wait for it as well: one client that leaves does not end it
        for message in await asyncio.shield(task):
            await send(message)

    async def _answer(self, path: str, scope: Scope) -> list[Message]:
        messages: list[Message] = []

        async def receive() -> Message:
            if asked:
                await asyncio.Event().wait()
            asked.append(path)
            return {"type": "http.request", "body": b"", "more_body": False}

        async def keep(message: Message) -> None:
            messages.append(message)

        asked: list[str] = []
        async with self._turn:
            # from here on things may change that this answer does not tell
            del self._next[path]
            await self._app(scope, receive, keep)
        return messages


def _is_shared(scope: Scope) -> bool:
    return (
        scope["method"] == "GET"
        and scope["path"] in _SHARED
        and not scope.get("query_string")
        and not header(scope, "content-length")
        and not header(scope, "transfer-encoding")
    )
