"""Log lines that nobody else can write: what clients send is text, and no line of its own.

A name with a line break would begin a line that looks like the server's; an escape sequence would
act on the terminal of the admin who reads it. MONAI Label writes names into its messages, so that
only the formatters see all of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

# C0 but for tabs and line feeds, DEL, C1, and Unicode's own line breaks and text directions
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTINUED = "\n    "


def guard_logs() -> None:
    """Have every handler of this process write such lines; a second time changes nothing."""
    for handler in _handlers():
        if not isinstance(handler.formatter, SafeLines):
            handler.setFormatter(SafeLines(handler.formatter or logging.Formatter()))


class SafeLines(logging.Formatter):
    """Control characters escaped, and every line but the first one of a record indented.

    Args:
        inner: makes the lines.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """A record as text."""
        return safe(self._inner.format(record))


def safe(text: str) -> str:
    """A text whose lines are one record, also on a terminal."""
    escaped = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    return escaped.rstrip("\n").replace("\n", _CONTINUED)


def _handlers() -> Iterator[logging.Handler]:
    loggers: list[object] = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            yield from logger.handlers
