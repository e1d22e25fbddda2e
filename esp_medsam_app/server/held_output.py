"""The output of a process, held back while it starts."""

from __future__ import annotations

import re
import threading
from typing import IO, TextIO

_OF_NOTE = re.compile(r"\[(WARNING|ERROR|CRITICAL)\]")


class HeldOutput:
    """Passes lines on, but only from the moment that they are released.

    MONAI Label prints dozens of lines on starting, which matter only if it fails.

    Args:
        source: what the process prints; read in a thread until it ends.
        target: where it goes.
    """

    def __init__(self, source: IO[bytes], target: TextIO) -> None:
        self._target = target
        self._held: list[str] | None = []
        self._writing = threading.Lock()
        self._reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._reader.start()

    def release(self, *, all_lines: bool) -> None:
        """Pass on from now; of the lines held, all or only warnings and errors."""
        with self._writing:
            for line in self._held or []:
                if all_lines or _OF_NOTE.search(line):
                    self._target.write(line)
            self._held = None
            self._target.flush()

    def finish(self, timeout: float = 5) -> None:
        """Wait until everything that an ended process printed has been read."""
        self._reader.join(timeout)

    def _read(self, source: IO[bytes]) -> None:
        for raw in source:
            line = raw.decode(errors="replace")
            with self._writing:
                if self._held is not None:
                    self._held.append(line)
                else:
                    self._target.write(line)
                    self._target.flush()
