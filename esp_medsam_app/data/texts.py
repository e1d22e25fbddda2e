"""JSON and YAML from files that may be damaged, or made to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

# A bundle's description has some ten kilobytes.
_LARGEST = 16 << 20
_TOO_DEEP = "nested too deeply"


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: not JSON in UTF-8, too large, or nested too deeply.
    """
    try:
        return json.loads(_text(path))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: not YAML in UTF-8, too large, or nested too deeply; with aliases, by which some
            lines become gigabytes.
    """
    return parse_yaml(_text(path))


def parse_yaml(text: str) -> Any:
    """A value in YAML.

    Raises:
        ValueError: as `read_yaml`.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"larger than {_LARGEST >> 20} MB")
    return content.decode("utf-8")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value out")
        return super().compose_node(parent, index)
