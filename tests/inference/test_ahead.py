"""Steps beside each other: order, bounds, errors, and threads that end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from esp_medsam_app.inference.ahead import ahead, behind


def running(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


@pytest.mark.parametrize("most", [1, 3, 100])
def test_all_items_in_order(most: int) -> None:
    assert list(ahead(iter(range(20)), most)) == list(range(20))
    assert list(behind(lambda n: n * n, range(20), most)) == [n * n for n in range(20)]
    assert running("ahead") == running("behind") == 0


def test_items_are_made_while_others_are_used() -> None:
    """The second is there while the first is still held; without a thread this would not end."""
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    with closing(ahead(items(), 1)) as numbers:
        assert next(numbers) == 1
        assert made.wait(10)
        assert next(numbers) == 2


def test_no_more_wait_than_were_allowed() -> None:
    made: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 4:
                full.set()
            yield number

    with closing(ahead(items(), 2)) as numbers:
        assert next(numbers) == 0
        assert next(numbers) == 1
        # one is taken, two wait, one is in the maker's hand
        assert full.wait(10)
        assert len(made) == 5
    # closing lets the one in hand go; nothing further is made
    assert len(made) <= 6
    assert running("ahead") == 0


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise MemoryError("no more")

    found: list[int] = []
    with pytest.raises(MemoryError, match="no more"):
        found.extend(ahead(items(), 5))
    with pytest.raises(MemoryError, match="no more"):
        found.extend(behind(lambda n: n, items(), 5))
    assert running("ahead") == running("behind") == 0

    def halved(number: int) -> float:
        return 1 / (number - 2)

    results = behind(halved, range(5), 1)
    assert next(results) == -0.5
    assert next(results) == -1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert running("behind") == 0


def test_results_that_are_waited_for_are_bounded() -> None:
    taken: list[int] = []
    gate = threading.Event()

    def items() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            if number == 3:
                # the third further one: now the first has to be waited for
                gate.set()
            yield number

    def slow(number: int) -> int:
        assert gate.wait(10)
        return number

    with closing(behind(slow, items(), 3)) as results:
        assert next(results) == 0
        assert len(taken) == 4


def test_closing_before_the_start_is_nothing() -> None:
    ahead(iter([1]), 1).close()
    behind(abs, [1], 1).close()
    assert running("ahead") == running("behind") == 0
