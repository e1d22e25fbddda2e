"""No answer tells where the server keeps its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# What may stand before a path: never another path, or the host of an address.
_BEFORE = r"(?<![\w.\-~%/])"
_AFTER = r"(?![\w\-~%])"


class Redaction:
    """Takes the server's folders out of texts: what is left of a path is relative to its folder.

    Args:
        roots: folders; those that hold others may come in any order.
    """

    def __init__(self, roots: Iterable[str | Path]) -> None:
        texts = {str(root).rstrip("/") for root in roots if str(root)}
        known = [text for text in texts if Path(text).is_absolute()]
        # the longest first: a folder inside another one is the better name
        spellings = [s for t in sorted(known, key=len, reverse=True) for s in _spellings(t)]
        self._pattern = (
            re.compile(f"{_BEFORE}(?:{'|'.join(map(re.escape, spellings))})(?:/|{_AFTER})")
            if spellings
            else None
        )

    def text(self, text: str) -> str:
        """The text without the folders."""
        return self._pattern.sub("", text) if self._pattern else text

    def body(self, content: bytes) -> bytes:
        """A body of JSON or text, in UTF-8."""
        if self._pattern is None:
            return content
        text = content.decode("utf-8", errors="surrogateescape")
        return self.text(text).encode("utf-8", errors="surrogateescape")

    def value(self, value: Any) -> Any:
        """Anything that JSON can hold."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


def _spellings(path: str) -> list[str]:
    """As it is, and as JSON writes letters beyond ASCII."""
    escaped = json.dumps(path)[1:-1]
    return [path] if escaped == path else [path, escaped]
