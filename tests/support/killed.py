"""A process that is killed at the n-th thing it does to the disk, as `kill -9` would."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KILLED = 9
# whatever alters a file or a folder, or waits for the disk
_STEPS: list[tuple[Any, str]] = [
    (os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (os, "remove"),
    (shutil, "copyfile"), (shutil, "rmtree"), (Path, "write_bytes"), (Path, "write_text"),
    (Path, "rename"), (Path, "unlink"), (os, "link"),
]  # fmt: skip


def killed_at_each_step(work: Callable[[], None]) -> Iterator[int]:
    """Run some work in a process again and again, killed a step later each time.

    Yields the number of the step after each kill, the last time when the work got through.
    """
    for step in range(10_000):
        process = multiprocessing.get_context("fork").Process(target=_run, args=(work, step))
        process.start()
        process.join(120)
        assert process.exitcode in (0, KILLED), process.exitcode
        yield step
        if process.exitcode == 0:
            return


def _run(work: Callable[[], None], last: int) -> None:
    left = last

    def counted(do: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                # half of what was to be written may be there
                with contextlib.suppress(Exception):
                    _half(do, *arguments)
                os._exit(KILLED)
            left -= 1
            return do(*arguments, **options)

        return step

    for owner, name in _STEPS:
        setattr(owner, name, counted(getattr(owner, name)))
    work()
    os._exit(0)


def _half(do: Callable[..., Any], *arguments: Any) -> None:
    if do.__name__ == "write_bytes":
        do(arguments[0], arguments[1][: len(arguments[1]) // 2])
    elif do.__name__ == "copyfile":
        content = Path(arguments[0]).open("rb").read()  # noqa: SIM115
        with open(arguments[1], "wb") as file:
            file.write(content[: len(content) // 2])
