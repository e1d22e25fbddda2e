"""A process that reads files for another one, which can end it: `python -m` this module.

Decoders are large, and what is sent to a server may be made to break them, to fill the memory or to
keep them busy for ever. Requests come on the standard input, answers go to the standard output, as
`wire` says. Each request has a limit of memory and of time, beyond which the kernel ends the
process. The parent's secrets are not in its environment.

It imports no torch, so that it starts in half a second.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from esp_medsam_app.data.wire import KEPT, RETIRES, Request, send_error, send_failure, send_result
from esp_medsam_app.errors import EspMedSamError, InputError

# Beside what a file may take: code that decoders load, and what allocators keep.
_SLACK = 192 << 20
# What stays behind after a request beyond this makes a new process worth its start.
_KEEPS = 64 << 20
_GRACE_SECONDS = 5.0


def main() -> None:
    """Read until the parent closes the standard input."""
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        # what decoders print is no answer
        os.dup2(2, 1)
        functions = _functions()
        before = _resident()
        while True:
            try:
                request: Request = pickle.load(requests)
            except EOFError:
                return
            _answer(request, functions, answers)
            retires = _resident() - before > _KEEPS
            answers.write(RETIRES if retires else KEPT)
            answers.flush()
            if retires:
                return


def _functions() -> dict[str, Callable[..., Any]]:
    # all of it, before the first request
    import esp_medsam_app.data.dicom
    import esp_medsam_app.data.itk  # noqa: F401
    from esp_medsam_app.data.archives import unpack
    from esp_medsam_app.data.reading import read_grid, read_image, read_label_map

    return {f.__name__: f for f in (read_grid, read_image, read_label_map, unpack)}


def _answer(request: Request, functions: dict[str, Callable[..., Any]], answers: BinaryIO) -> None:
    # not caught: the kernel ends the process, also in the middle of a decoder
    signal.setitimer(signal.ITIMER_REAL, request.seconds + _GRACE_SECONDS)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if request.memory is not None:
        limit = _mapped() + request.memory + _SLACK
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        result = functions[request.function](*request.arguments, **request.options)
        send_result(answers, _plain(result))
        del result
    except EspMedSamError as error:
        send_error(answers, error)
    except MemoryError:
        send_error(
            answers,
            InputError(
                "needs more memory than a file of its size may take",
                path=request.arguments[0],
                remedy="Crop or downsample it, or save it with fewer bits a voxel",
            ),
        )
    except Exception:
        send_failure(answers, traceback.format_exc())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _give_back()


def _plain(value: Any) -> Any:
    """A result whose arrays are plain and whole, and whose headers hold no extensions."""
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
        whole = array.flags.c_contiguous or array.flags.f_contiguous
        return array if whole else np.ascontiguousarray(array)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)})
    if hasattr(value, "extensions"):
        del value.extensions[:]
    return value


def _give_back() -> None:
    gc.collect()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            return


def _resident() -> int:
    return _pages(1)


def _mapped() -> int:
    return _pages(0)


def _pages(column: int) -> int:
    """Bytes of this process, as Linux counts them; nothing elsewhere."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[column]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main()
