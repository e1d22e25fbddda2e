"""Requests do not hold each other up, wait for their turn, and are sent away from a full queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from support.conversations import Gate, talk, unblocked, until
from support.fake_server import FakeSegmenters

from esp_medsam_app.server.asgi import FrontDoor
from esp_medsam_app.server.door.lanes import Lane
from esp_medsam_app.server.door.refusal import ClientLeftError, RefusedError

INFER = "/infer/esp_medsam_ct_organs?image=case&output=json"
SECONDS = 30


@pytest.fixture
def gate(segmenters: FakeSegmenters, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(segmenters, monkeypatch)


@pytest.mark.parametrize(
    ("server", "patience"),
    [
        ("front door", 20),
        ("plain server of this app", 20),
        pytest.param(
            "MONAI Label", 1, marks=pytest.mark.xfail(strict=True, reason="0.8.5 blocks its loop")
        ),
    ],
)
def test_an_inference_holds_nobody_up(
    make_door: Callable[..., FrontDoor],
    client: TestClient,
    gate: Gate,
    server: str,
    patience: float,
) -> None:
    app = make_door() if server == "front door" else client.app
    plainly = unblocked() if server == "plain server of this app" else nullcontext()
    in_vain = threading.Timer(patience, gate.open)
    in_vain.start()

    async def conversation(client: httpx.AsyncClient) -> None:
        slow = asyncio.create_task(client.post(INFER))
        await gate.wait_for(1)
        for path in ("/info/", "/datastore/image?image=case", "/ohif/", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        sample = await client.post("/activelearning/random")
        assert sample.status_code == 200
        assert in_vain.is_alive()
        gate.open()
        assert (await slow).status_code == 200

    try:
        with plainly:
            talk(app, conversation)
    finally:
        in_vain.cancel()


def test_no_more_inferences_at_once_than_slots_and_none_is_lost(
    make_door: Callable[..., FrontDoor], gate: Gate
) -> None:
    door = make_door(infer_slots=2, infer_queue=10)

    async def conversation(client: httpx.AsyncClient) -> None:
        sent = [asyncio.create_task(client.post(INFER)) for _ in range(8)]
        await gate.wait_for(2)
        await until(lambda: door.inferences.waiting == 6)
        assert door.inferences.running == 2
        gate.open()
        assert [answer.status_code for answer in await asyncio.gather(*sent)] == [200] * 8

    talk(door, conversation)
    assert gate.most == 2
    assert door.inferences.running == door.inferences.waiting == 0


def test_who_comes_to_a_full_queue_is_told_when_to_come_again(
    make_door: Callable[..., FrontDoor], gate: Gate
) -> None:
    door = make_door(infer_slots=1, infer_queue=1)

    async def conversation(client: httpx.AsyncClient) -> None:
        sent = [asyncio.create_task(client.post(INFER)) for _ in range(2)]
        await gate.wait_for(1)
        await until(lambda: door.inferences.is_full)
        refused = await client.post(INFER)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "Try again" in refused.json()["detail"]
        assert (await client.get("/info/")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "queue of inference" in ready.json()["detail"]
        metrics = (await client.get("/metrics")).text
        assert 'esp_medsam_waiting{lane="inference"} 1' in metrics
        assert 'esp_medsam_refused_total{lane="inference"} 1' in metrics
        gate.open()
        for answer in await asyncio.gather(*sent):
            assert answer.status_code == 200

    talk(door, conversation)


def test_who_leaves_the_queue_is_not_worked_for(
    make_door: Callable[..., FrontDoor], gate: Gate, segmenters: FakeSegmenters
) -> None:
    door = make_door(infer_slots=1)

    async def conversation(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post(INFER))
        await gate.wait_for(1)
        gone = asyncio.Event()
        leaver = asyncio.create_task(post_and_leave(door, gone))
        await until(lambda: door.inferences.waiting == 1)
        gone.set()
        assert await leaver == []
        assert door.inferences.waiting == 0
        gate.open()
        assert (await first).status_code == 200

    talk(door, conversation)
    assert segmenters.calls == 1
    assert door.metrics.left.value(lane="inference") == 1


async def post_and_leave(door: FrontDoor, gone: asyncio.Event) -> list[Any]:
    """Send an inference, leave when `gone` is set; what was answered until then."""
    answers: list[Any] = []
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answers.append(message)

    path, _, query = INFER.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "headers": [], "client": ("1.2.3.4", 5), "server": ("server", 80),
    }  # fmt: skip
    await door(scope, receive, send)
    return answers


def test_an_error_gives_its_place_back(
    make_door: Callable[..., FrontDoor], segmenters: FakeSegmenters
) -> None:
    door = make_door(infer_slots=1, infer_queue=0)
    client = TestClient(door, raise_server_exceptions=False)
    segmenters.error = ZeroDivisionError()
    assert client.post(INFER).status_code == 500
    segmenters.error = None
    assert client.post(INFER).status_code == 200
    assert door.inferences.running == 0


def test_first_come_first_served_whoever_leaves() -> None:
    async def run() -> None:
        lane, served = Lane("x", 1, 10), []
        left = [asyncio.get_running_loop().create_future() for _ in range(5)]

        async def one(number: int) -> None:
            try:
                await lane.enter(left[number])
            except ClientLeftError:
                return
            served.append(number)
            lane.leave(0.1)

        first = asyncio.get_running_loop().create_future()
        await lane.enter(first)
        waiting = [asyncio.create_task(one(number)) for number in range(5)]
        await until(lambda: lane.waiting == 5)
        left[1].set_result(None)
        waiting[3].cancel()
        await until(lambda: lane.waiting == 3)
        lane.leave(0.1)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert served == [0, 2, 4]
        assert lane.running == lane.waiting == 0

    asyncio.run(run())


def test_how_long_to_wait_follows_how_long_requests_take() -> None:
    async def run() -> None:
        lane = Lane("x", 1, 0)
        left = asyncio.get_running_loop().create_future()
        for _ in range(50):
            await lane.enter(left)
            lane.leave(20)
        assert 18 <= lane.retry_after() <= 20
        await lane.enter(left)
        with pytest.raises(RefusedError) as caught:
            await lane.enter(left)
        assert caught.value.status == 429
        for _ in range(80):
            lane._seconds += 0.2 * (0.01 - lane._seconds)
        assert lane.retry_after() == 1

    asyncio.run(run())
