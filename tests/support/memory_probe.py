"""A process of its own that reads files and tells what memory each took: here and in its readers.

Arguments: the name of a function of `server.reading`, and files. A line of JSON for each: the peak
above what there was before, MB, and what went wrong.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import numpy as np

from esp_medsam_app.data.image import Grid
from esp_medsam_app.errors import InputError
from esp_medsam_app.server import reading

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The largest memory of this process and its readers together, looked at all the time."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._most = self.before = resident()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._most = max(self._most, resident())

    def above(self) -> float:
        self._stop.set()
        self._thread.join()
        return (self._most - self.before) / 1e6


def resident() -> int:
    own = os.getpid()
    with open(f"/proc/{own}/task/{own}/children", encoding="ascii") as file:
        family = [own, *map(int, file.read().split())]
    total = 0
    for pid in family:
        try:
            with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * _PAGE
        except OSError:
            continue
    return total


def read(function: str, path: Path, shape: tuple[int, ...]) -> str:
    try:
        if function == "label":
            image = reading.read_label_map(path, Grid(shape, np.eye(4)))
        else:
            image = reading.read_image(path)
    except InputError as error:
        return error.problem
    return f"{image.voxels.dtype} {image.voxels.shape}"


def main() -> None:
    function, shape, *files = sys.argv[1:]
    small = Path(files.pop(0))
    read("image", small, ())
    before = resident()
    for file in files:
        peak = Peak()
        told = read(function, Path(file), tuple(json.loads(shape)))
        print(json.dumps([peak.above(), told]), flush=True)
    read("image", small, ())
    print(json.dumps([(resident() - before) / 1e6, "afterwards"]), flush=True)


if __name__ == "__main__":
    main()
