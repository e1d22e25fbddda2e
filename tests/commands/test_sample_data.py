"""`esp-medsam sample-data`, as typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp_medsam_app.cli import app, main
from esp_medsam_app.samples import builder, sample_cases


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sample-data", *arguments])
    return result.exit_code, result.output


def test_builds_once_and_then_only_checks(tmp_path: Path) -> None:
    code, output = run("--output", str(tmp_path / "new" / "samples"))
    assert code == 0
    assert f"{len(sample_cases())} cases" in output
    assert "files written" in output
    code, output = run("--output", str(tmp_path / "new" / "samples"))
    assert code == 0
    assert "complete already" in output


def test_says_which_images_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = builder.PACKAGED_IMAGES[0]
    absent = type(image)(**{**vars(image), "package": "no_such_package"})
    monkeypatch.setattr(builder, "PACKAGED_IMAGES", (absent,))
    code, output = run("--output", str(tmp_path))
    assert code == 0
    assert f"left out {image.case}: package {image.distribution} is not installed" in output


def test_unwritable_output_is_one_red_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["sample-data", "--output", str(blocked)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert len(error.strip().splitlines()) == 1
