"""What clients send is text in the logs, and begins no line of its own."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from esp_medsam_app.server.log_lines import SafeLines, guard_logs, safe

FORGED = (
    "ann\r\n[2026-01-01 00:00:00,000] [INFO] - model.publish by admin\x1b[2K\x9b1A\u2028\u202eend"
)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a handler of MONAI Label's kind writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[%(asctime)s] [%(levelname)s] - %(message)s"))
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def lines_of_their_own(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("    ")]


@pytest.mark.parametrize("name", ["client_id", "user", "label_tag", "device", "result_extension"])
def test_nothing_in_a_request_begins_a_line(door: TestClient, log: io.StringIO, name: str) -> None:
    guard_logs()
    for path in ("/activelearning/random", "/scoring/dice", "/batch/infer/esp_medsam_spots"):
        door.post(path, json={name: FORGED})
    door.post("/infer/esp_medsam_spots?image=photo", data={"params": f'{{"{name}": "a\\r\\n[b]"}}'})
    door.get("/datastore/image", params={"image": FORGED})
    door.get("/info/", headers={"authorization": "Basic x", "user-agent": "a\x1b[2K"})
    logging.getLogger("monailabel").info(f"Request: {FORGED}")
    text = log.getvalue()
    assert "Request" in text
    assert not any(letter in text for letter in "\r\x1b\x9b\u2028\u202e")
    assert all(line.startswith("[20") and "] [" in line for line in lines_of_their_own(text))
    assert not any(line.startswith("[2026-01-01") for line in text.splitlines())


def test_a_traceback_is_one_record(log: io.StringIO) -> None:
    guard_logs()
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("x").exception("It failed")
    assert len(lines_of_their_own(log.getvalue())) == 1
    assert "Traceback" in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_guarding_twice_changes_nothing(log: io.StringIO) -> None:
    guard_logs()
    handler = next(h for h in logging.getLogger().handlers if getattr(h, "stream", None) is log)
    first = handler.formatter
    guard_logs()
    assert handler.formatter is first
    assert isinstance(first, SafeLines)


@pytest.mark.parametrize(
    ("text", "told"),
    [("plain ü 日本\ttext", "plain ü 日本\ttext"), ("a\nb\n", "a\n    b"), ("\r", "\\r"),
     ("\x1b[0m", "\\x1b[0m"), ("\u202e", "\\u202e"), ("\x00", "\\x00")],
)  # fmt: skip
def test_control_characters_are_named(text: str, told: str) -> None:
    assert safe(text) == told


def test_the_audit_has_one_line_a_change(
    door: TestClient, audited: Callable[[], list[dict[str, Any]]]
) -> None:
    door.put("/datastore/image/info?image=photo", data={"info": "{}"})
    door.put("/datastore/image/info", params={"image": "photo\n{}"}, data={"info": "{}"})
    assert len(audited()) == 1
