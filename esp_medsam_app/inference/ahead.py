"""Doing steps of a long work beside each other: in threads, in order, with bounds on what waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")

_END = object()


def ahead(items: Iterator[Item], most: int) -> Generator[Item, None, None]:
    """The items, made by a thread while others are worked on.

    Close it when it is not used to its end: the thread is then gone. What making an item raises is
    raised here, in its place.

    Args:
        items: used by the thread alone.
        most: items that wait at most, beside the one that is being made.
    """
    waiting: Queue[object] = Queue(most)
    unwanted = threading.Event()
    failure: list[BaseException] = []

    def make() -> None:
        try:
            for item in items:
                waiting.put(item)
                if unwanted.is_set():
                    break
        except BaseException as error:
            failure.append(error)
        finally:
            waiting.put(_END)

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    item: object = None
    try:
        while (item := waiting.get()) is not _END:
            yield cast(Item, item)
    finally:
        unwanted.set()
        while item is not _END:
            item = waiting.get()
        thread.join()
    if failure:
        # taken out: else the error's traceback would hold the list that holds it
        raise failure.pop()


def behind(
    function: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Generator[Result, None, None]:
    """`map(function, items)` in order, the function running in a thread behind the items.

    Close it when it is not used to its end.

    Args:
        function: called by one thread, one item after the other.
        items: used by the caller's thread.
        most: results that are waited for at most; then no further item is taken.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="behind") as thread:
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(thread.submit(function, item))
                while len(running) > most or (running and running[0].done()):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
