"""The audit: a line for each change, whole, from every process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esp_medsam_app.server.audit import AUDIT_FILE, audit, open_audit

WRITING = """
import sys
from esp_medsam_app.server.audit import audit
for number in range(200):
    audit("test", writer=sys.argv[1], number=number, text="x" * 500)
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "audit.jsonl"
    environment = {**os.environ, AUDIT_FILE: str(file)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITING, str(n)], env=environment) for n in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 600
    for n in range(3):
        assert [one["number"] for one in lines if one["writer"] == str(n)] == list(range(200))
    assert {one["user"] for one in lines} == {"server"}
    assert file.stat().st_mode & 0o007 == 0


def test_a_line_cannot_be_forged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(AUDIT_FILE, str(tmp_path / "a.jsonl"))
    with caplog.at_level(logging.INFO, "esp_medsam_app.audit"):
        audit("test", image='a"\n{"action": "forged"}')
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == 'a"\n{"action": "forged"}'
    assert line in caplog.text


def test_a_file_that_cannot_be_written_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(AUDIT_FILE, str(tmp_path / "file" / "a.jsonl"))
    audit("test")
    assert "cannot be written" in caplog.text


def test_the_user_s_own_file_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(AUDIT_FILE, raising=False)
    monkeypatch.setenv(AUDIT_FILE, "/mine")
    open_audit(tmp_path)
    assert os.environ[AUDIT_FILE] == "/mine"
    monkeypatch.delenv(AUDIT_FILE)
    open_audit(tmp_path)
    assert os.environ.pop(AUDIT_FILE) == str(tmp_path / "audit.jsonl")
