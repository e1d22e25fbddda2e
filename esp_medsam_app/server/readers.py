"""Processes that read files for this one; see `data.reading_process`."""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.wire import RETIRES, ReaderFailedError, Request, receive
from esp_medsam_app.errors import BusyError, EspMedSamError, InputError

_COMMAND = (sys.executable, "-m", "esp_medsam_app.data.reading_process")
# Nothing else of the server's environment: tokens and passwords are in it.
_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH",
    "TMPDIR", "VIRTUAL_ENV",
)  # fmt: skip
# One thread each: their stacks would count as memory.
_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_MOST = 4
_IDLE = 2
_WAIT_SECONDS = 30.0
_PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = 1031
_ANSWERED_SECONDS = 60.0

logger = logging.getLogger(__name__)


class Readers:
    """Some processes, each of which reads one file at a time.

    They are started when they are needed, and at most two wait for the next file. Threads may
    call it at the same time.

    Args:
        command: of a process.
        most: processes at the same time.
        wait: seconds that a file waits for one.
    """

    def __init__(
        self,
        command: Sequence[str] = _COMMAND,
        most: int = _MOST,
        wait: float = _WAIT_SECONDS,
    ) -> None:
        self._command = tuple(command)
        self._most = most
        self._wait = wait
        self._idle: list[_Reader] = []
        self._busy: set[_Reader] = set()
        self._changed = threading.Condition()
        self._closed = False

    def warm(self) -> None:
        """Start one, so that the first file need not wait for it."""
        with self._changed:
            if not self._closed and not self._idle and not self._busy:
                self._idle.append(_Reader(self._command))

    def read(
        self,
        function: str,
        path: Path,
        *arguments: Any,
        memory: int | None,
        seconds: float,
        **options: Any,
    ) -> Any:
        """What a function of `data.reading` returns for a file.

        Args:
            function: its name.
            path: of the file.
            arguments: further ones.
            memory: bytes that reading may take; none: as it likes.
            seconds: that it may take.
            options: further arguments, by name.

        Raises:
            InputError: the file cannot be used, takes too long, or ends its reader.
            BusyError: all readers are busy.
        """
        reader = self._taken()
        keep = False
        try:
            request = Request(function, (path, *arguments), options, memory, seconds)
            result, keep = reader.read(request, path)
        except EspMedSamError:
            keep = reader.is_ready
            raise
        finally:
            self._returned(reader, keep)
        # checks once more that voxels and grid fit
        return replace(result) if isinstance(result, MedicalImage) else result

    def close(self) -> None:
        """End all."""
        with self._changed:
            self._closed = True
            readers = [*self._idle, *self._busy]
            self._idle.clear()
        for reader in readers:
            reader.end()

    def _taken(self) -> _Reader:
        deadline = time.monotonic() + self._wait
        with self._changed:
            while not self._idle and len(self._busy) >= self._most:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise BusyError(
                        "the server is busy reading other files", remedy="Try again in a minute"
                    )
            reader = self._idle.pop() if self._idle else _Reader(self._command)
            if not reader.is_alive:
                reader.end()
                reader = _Reader(self._command)
            self._busy.add(reader)
            return reader

    def _returned(self, reader: _Reader, keep: bool) -> None:
        if not keep:
            reader.end()
        with self._changed:
            self._busy.discard(reader)
            if self._closed or (keep and len(self._idle) >= _IDLE):
                reader.end()
            elif keep:
                self._idle.append(reader)
            elif not self._idle:
                # it starts while nobody waits for it
                self._idle.append(_Reader(self._command))
            self._changed.notify()


class _Reader:
    """One process.

    Attributes:
        is_ready: it has answered the last request, and waits for the next.
    """

    def __init__(self, command: Sequence[str]) -> None:
        known = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # the package may not be installed, but lie in the working folder
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, known.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**known, "PYTHONPATH": path, **_THREADS},
            # a Ctrl-C is the server's
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._answers = self._process.stdout.fileno()
        self._enlarge(self._answers)
        self._deadline = 0.0
        self.is_ready = True

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read(self, request: Request, path: Path) -> tuple[Any, bool]:
        """The result of a request, and whether the reader can take another one."""
        self.is_ready = False
        self._deadline = time.monotonic() + request.seconds
        try:
            result = self._result(request)
            self._deadline = time.monotonic() + _ANSWERED_SECONDS
            return result, self._is_kept()
        except TimeoutError:
            raise InputError(
                f"reading it takes longer than {request.seconds:.0f} s",
                path=path,
                remedy="Save it in another format, or crop or downsample it",
            ) from None
        except (EOFError, OSError, ReaderFailedError) as error:
            self.end()
            code = self._process.returncode
            told = f"by signal {-code}" if code < 0 else f"with {code}"
            logger.error("A reader ended %s at %s: %s", told, path, error)
            if code == -signal.SIGALRM:
                reason = f"reading it takes longer than {request.seconds:.0f} s"
            elif code < 0 and not isinstance(error, ReaderFailedError):
                reason = "its decoder failed, or ran out of the memory that such a file may take"
            else:
                reason = "it cannot be read"
            raise InputError(reason, path=path, remedy="Export or copy it again") from error

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _result(self, request: Request) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(request))
        try:
            return receive(self._read_into, request.memory)
        except EspMedSamError:
            self._deadline = time.monotonic() + _ANSWERED_SECONDS
            self.is_ready = self._is_kept()
            raise

    def _is_kept(self) -> bool:
        last = bytearray(1)
        self._read_into(memoryview(last))
        self.is_ready = bytes(last) != RETIRES
        return self.is_ready

    def _read_into(self, buffer: memoryview) -> None:
        """Fill a buffer before the deadline.

        Raises:
            TimeoutError: it was not filled in time.
            EOFError: the process has ended.
        """
        poll = select.poll()
        poll.register(self._answers, select.POLLIN | select.POLLHUP)
        while buffer.nbytes:
            left = self._deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError
            count = os.readv(self._answers, [buffer])
            if not count:
                raise EOFError("the reader has ended")
            buffer = buffer[count:]

    def _enlarge(self, pipe: int) -> None:
        try:
            import fcntl

            fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE_BYTES)
        except (ImportError, OSError):
            return
