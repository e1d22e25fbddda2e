"""`doctor` on sound and on broken installations."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from support.dicom_phantoms import volume
from support.fake_pacs import FakePacs
from typer.testing import CliRunner

from esp_medsam_app import diagnosis
from esp_medsam_app.commands import doctor
from esp_medsam_app.diagnosis import Finding, Setting
from esp_medsam_app.errors import WeightsError
from esp_medsam_app.inference import device
from esp_medsam_app.installation import Need
from esp_medsam_app.samples import build_sample_data


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    app = tmp_path / "app"
    app.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Setting(None, app, tmp_path / "samples", tmp_path / "studies", "127.0.0.1", port)


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def run(arguments: list[str]) -> tuple[int, str]:
    app = typer.Typer()
    doctor.register(app)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def fake_checks(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr(diagnosis, "_CHECKS", {"fake": lambda _setting: findings})


def test_this_installation_is_sound(setting: Setting) -> None:
    for check in (
        diagnosis.check_python,
        diagnosis.check_packages,
        diagnosis.check_imports,
        diagnosis.check_modalities,
        diagnosis.check_backbone,
        diagnosis.check_device,
        diagnosis.check_dcmqi,
        diagnosis.check_port,
    ):
        for finding in check(setting):
            assert finding.state != "failed", finding
            assert finding.found


def test_exit_code_and_lines_follow_the_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, odd = Finding("a", "ok", "here"), Finding("b", "warning", "odd", "mend b")
    fake_checks(monkeypatch, fine, odd)
    code, output = run([])
    assert code == 0
    assert "-> mend b" in output
    assert "2 checks: 0 failed, 1 warnings" in output
    fake_checks(monkeypatch, fine, odd, Finding("c", "failed", "gone", "mend c"))
    code, output = run([])
    assert code == 2
    assert "-> mend c" in output


def test_json_has_every_finding_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_checks(monkeypatch, Finding("c", "failed", "gone [red]", "mend c"))
    code, output = run(["--json"])
    assert code == 2
    assert json.loads(output) == {
        "ok": False,
        "findings": [
            {"check": "c", "state": "failed", "found": "gone [red]", "remedy": "mend c"},
        ],
    }


def test_whatever_a_check_raises_is_its_finding_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    def broken(_setting: Setting) -> Iterable[Finding]:
        raise ImportError("libfoo.so: cannot open\nmore")

    def explained(_setting: Setting) -> Iterable[Finding]:
        raise WeightsError("is damaged", path="a/b", remedy="Restore it")

    def fine(_setting: Setting) -> Iterable[Finding]:
        yield Finding("last", "ok", "here")

    monkeypatch.setattr(
        diagnosis, "_CHECKS", {"broken": broken, "explained": explained, "last": fine}
    )
    first, second, third = diagnosis.diagnose(setting)
    assert (first.check, first.state) == ("broken", "failed")
    assert first.found == "ImportError: libfoo.so: cannot open"
    assert first.remedy
    assert second == Finding("explained", "failed", "a/b: is damaged", "Restore it")
    assert third.state == "ok"


def test_unsupported_python_fails(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1, "final", 0))
    finding = only(diagnosis.check_python(setting))
    assert finding.state == "failed"
    assert "3.9.1" in finding.found


def test_unmet_needs_fail_with_the_command_that_mends_them(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    unmet = [
        Need("esp-medsam-app", "numpy", "<2,>=1.26", "2.1.0", False),
        Need("monailabel", "pydicom-seg", "", None, False),
        Need("monailabel", "pydicom", ">=2", "2.4.5", True),
    ]
    monkeypatch.setattr(diagnosis, "needs", lambda: unmet)
    monkeypatch.setattr(diagnosis, "CHECKOUT", setting.app)
    first, second = diagnosis.check_packages(setting)
    assert first.state == second.state == "failed"
    assert "numpy 2.1.0" in first.found
    assert '"numpy<2,>=1.26"' in first.remedy
    assert "pydicom-seg is missing" in second.found


def test_versions_other_than_the_tested_ones_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    installed = importlib.metadata.version("numpy")
    (setting.app / "requirements.txt").write_text(
        f"# tested\nnumpy=={installed}\nno-such-package==1.0\n"
        'also-none==2; sys_platform == "nowhere"\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(diagnosis, "needs", list)
    monkeypatch.setattr(diagnosis, "CHECKOUT", setting.app)
    finding = list(diagnosis.check_packages(setting))[-1]
    assert finding.state == "warning"
    assert finding.found == "no-such-package missing instead of 1.0"


def test_an_import_that_fails_or_crashes_is_named(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, tmp_path: Path
) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_thing\n", encoding="utf-8")
    (tmp_path / "crashing_module.py").write_text("import os; os.abort()\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(diagnosis, "_IMPORTS", ("json", "broken_module", "csv"))
    finding = only(diagnosis.check_imports(setting))
    assert finding.state == "failed"
    assert "broken_module cannot be imported" in finding.found
    assert "no_such_thing" in finding.found
    monkeypatch.setattr(diagnosis, "_IMPORTS", ("json", "crashing_module"))
    finding = only(diagnosis.check_imports(setting))
    assert finding.state == "failed"
    assert "crashing_module cannot be imported" in finding.found


def test_missing_bundle_is_a_failed_check_not_a_crash(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, tmp_path: Path
) -> None:
    # the real ones take seconds, and have their own test
    monkeypatch.setattr(diagnosis, "_IMPORTS", ("json",))
    findings = {
        finding.check: finding
        for finding in diagnosis.diagnose(replace(setting, bundle=tmp_path / "none"))
    }
    assert findings["weights"].state == "failed"
    assert "bundle.json" in findings["weights"].found
    assert findings["sample data"].state == "warning"


def test_a_cpu_without_bfloat16_is_told_what_is_faster(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "_cpu_multiplies_bfloat16", lambda: False)
    assert "--profile compact" in only(diagnosis.check_device(setting)).found
    monkeypatch.setattr(device, "_cpu_multiplies_bfloat16", lambda: True)
    assert "compact" not in only(diagnosis.check_device(setting)).found


def test_missing_and_broken_dcmqi_fail(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = only(diagnosis.check_dcmqi(setting))
    assert finding.state == "failed"
    assert "not found" in finding.found
    tool = tmp_path / "itkimage2segimage"
    tool.write_text("#!/bin/sh\necho wrong libc >&2\nexit 3\n", encoding="utf-8")
    tool.chmod(0o755)
    finding = only(diagnosis.check_dcmqi(setting))
    assert finding.state == "failed"
    assert "wrong libc" in finding.found


def test_port_in_use_is_a_warning_and_a_foreign_address_a_failure(setting: Setting) -> None:
    assert only(diagnosis.check_port(setting)).state == "ok"
    with socket.socket() as server:
        server.bind(("127.0.0.1", setting.port))
        server.listen()
        finding = only(diagnosis.check_port(setting))
    assert finding.state == "warning"
    assert str(setting.port) in finding.found
    assert "another port" in finding.remedy
    # TEST-NET-1 (RFC 5737): never an address of this machine
    assert only(diagnosis.check_port(replace(setting, host="192.0.2.1"))).state == "failed"


def test_folders_must_be_there_or_makeable_with_room(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, tmp_path: Path
) -> None:
    assert [finding.state for finding in diagnosis.check_folders(setting)] == ["ok"] * 3
    missing = list(diagnosis.check_folders(replace(setting, app=tmp_path / "none")))
    assert [finding.state for finding in missing] == ["failed", "ok", "ok"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    under_file = list(diagnosis.check_folders(replace(setting, studies=blocked / "studies")))
    assert under_file[1].state == "failed"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10**9))
    assert {finding.state for finding in diagnosis.check_folders(setting)} == {"warning"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10**6))
    assert {finding.state for finding in diagnosis.check_folders(setting)} == {"failed"}


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePacs]:
    from esp_medsam_app.server.pacs import client

    monkeypatch.setattr(client, "_CONNECT", 0.5)
    monkeypatch.setattr(client.settings, "MONAI_LABEL_DICOMWEB_READ_TIMEOUT", 0.5)
    archive = FakePacs(volume(2))
    yield archive
    archive.close()


@pytest.mark.parametrize(
    ("state", "found", "remedy"),
    [
        ("sound", "a series of CT was read", ""),
        ("empty", "holds no series", "Send it images"),
        ("frozen", "does not answer", "Look whether it runs"),
        ("closed", "does not answer", "Look whether it runs"),
        ("locked", "refuses this server's credentials", "MONAI_LABEL_DATASTORE_USERNAME"),
        ("elsewhere", "no DICOMweb", "http://HOST:8042/dicom-web"),
    ],
)
def test_a_pacs_is_asked(
    setting: Setting, pacs: FakePacs, state: str, found: str, remedy: str
) -> None:
    url = pacs.url
    if state == "empty":
        pacs.instances.clear()
    elif state == "frozen":
        pacs.frozen.set()
    elif state == "closed":
        pacs.close()
    elif state == "locked":
        pacs.password = "secret"
    elif state == "elsewhere":
        url = pacs.url.replace("dicom-web", "nothing-here")
    finding = only(diagnosis.check_pacs(replace(setting, studies=url)))
    expected = {"sound": "ok", "empty": "warning"}.get(state, "failed")
    assert (finding.check, finding.state) == ("PACS", expected)
    assert found in finding.found
    assert url in finding.found
    assert remedy in finding.remedy


def test_a_folder_is_no_pacs_and_a_pacs_is_no_folder(setting: Setting) -> None:
    assert list(diagnosis.check_pacs(setting)) == []
    folders = list(diagnosis.check_folders(replace(setting, studies="http://pacs/dicom-web")))
    assert not any("http" in finding.found for finding in folders)
    assert folders[1].check == "PACS's labels"


def test_sample_data_is_recognised(setting: Setting) -> None:
    assert only(diagnosis.check_samples(setting)).state == "warning"
    build_sample_data(setting.samples)
    assert only(diagnosis.check_samples(setting)).state == "ok"


def test_runs_alone_without_numpy_and_torch(tmp_path: Path) -> None:
    """The other commands may be unusable; this one says why."""
    for name in ("numpy", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is broken')\n")
    done = subprocess.run(
        [sys.executable, "-m", "esp_medsam_app.commands.doctor", "--json"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    findings = {item["check"]: item for item in json.loads(done.stdout)["findings"]}
    assert "numpy is broken" in findings["imports"]["found"]
    assert "torch is broken" in findings["device"]["found"]
    assert findings["python"]["state"] == "ok"
