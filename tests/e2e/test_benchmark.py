"""`esp-medsam benchmark` as a process, with a server of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.small_starter import small_starter


@pytest.mark.e2e
def test_benchmark_of_everything(
    command_line: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    bundle = small_starter(tmp_path / "bundle")
    report = tmp_path / "report.json"
    done = command_line(
        "benchmark", "--quick", "--rounds", 1, "--volume", "--slices", 3, "--http",
        "--json", report, "--bundle", bundle, "--modality", "microscopy_nuclei",
        "--device", "cpu", "--no-memory", "--precision", "float32", "--precision", "bfloat16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in ("x plain", "TFLOP/s", "slices/s", "again"):
        assert told in done.stdout
    written = json.loads(report.read_text())
    assert len(written["passes"]["figures"]) == 3
    assert written["volume"]["shape"] == [512, 512, 3]
    assert [row["image"] for row in written["http"]["figures"]] == ["picture", "volume"]
    assert all(row["first"]["p50"] > 0 for row in written["http"]["figures"])
