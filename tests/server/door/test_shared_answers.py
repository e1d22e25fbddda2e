"""Equal requests at the same time: answered once, and not with what was there before they came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.asgi_calls import Answered, Raw, call

from esp_medsam_app.server.door.refusal import RefusedError
from esp_medsam_app.server.door.shared_answers import SharedAnswers


class Counting:
    """Answers with what there was when it began; fails where it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.going_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        told = str(self.begun).encode()
        assert (await receive())["more_body"] is False
        await self.going_on.wait()
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": told})


def info(query: bytes = b"") -> Raw:
    return Raw("GET", "/info/", query)


async def bare(app: Any, request: Raw) -> Answered:
    """Without the header that tells of a body, as viewers ask."""

    async def without(scope: Any, receive: Any, send: Any) -> None:
        headers = [one for one in scope["headers"] if one[0] != b"content-length"]
        await app({**scope, "headers": headers}, receive, send)

    return await call(without, request)


def test_whoever_asks_meanwhile_gets_the_next_answer() -> None:
    async def asked() -> None:
        inner = Counting()
        shared = SharedAnswers(inner)
        first = asyncio.create_task(bare(shared, info()))
        await asyncio.sleep(0.01)
        assert inner.begun == 1
        # these come when the first answer has begun: it may not tell what they want to know
        others = [asyncio.create_task(bare(shared, info())) for _ in range(20)]
        await asyncio.sleep(0.01)
        others[3].cancel()
        inner.going_on.set()
        assert (await first).body == b"1"
        told = [(await one).body for one in others if one is not others[3]]
        assert told == [b"2"] * 19
        assert inner.begun == 2
        assert (await bare(shared, info())).body == b"3"

    asyncio.run(asked())


def test_other_requests_are_passed_on() -> None:
    async def asked() -> None:
        inner = Counting()
        inner.going_on.set()
        shared = SharedAnswers(inner)
        others = [info(b"a=1"), Raw("POST", "/info/"), Raw("GET", "/datastore/"), info()]
        # the last one says that a body comes
        told = await asyncio.gather(*(call(shared, one) for one in others))
        assert sorted(one.body for one in told) == [b"1", b"2", b"3", b"4"]

    asyncio.run(asked())


def test_an_error_is_told_to_all_who_wait_and_to_nobody_later() -> None:
    async def asked() -> None:
        inner = Counting()
        shared = SharedAnswers(inner)
        inner.error = RefusedError(429, "busy")
        inner.going_on.set()
        found = await asyncio.gather(
            *(bare(shared, info()) for _ in range(3)), return_exceptions=True
        )
        assert [getattr(one, "status", None) for one in found] == [429] * 3
        inner.error = None
        assert (await bare(shared, info())).status == 200

    asyncio.run(asked())


def test_a_first_client_that_leaves_ends_no_answer() -> None:
    async def asked() -> None:
        inner = Counting()
        shared = SharedAnswers(inner)
        first = asyncio.create_task(bare(shared, info()))
        second = asyncio.create_task(bare(shared, info()))
        await asyncio.sleep(0.01)
        first.cancel()
        inner.going_on.set()
        assert (await second).status == 200
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(asked())
