"""What packages need, the locked sets, and the two commands that set everything up."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

from esp_medsam_app.installation import Need, needs, pinned_versions

ROOT = Path(__file__).resolve().parent.parent
Distribution = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """Puts made-up distributions in front of the installed ones."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def add(name: str, version: str, *requirements: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return add


def test_needs_follow_extras_markers_and_cycles(install: Distribution) -> None:
    install(
        "Top-Thing",
        "1.0",
        "middle.thing[fast]>=2",
        "absent-a; python_version < '3'",
        "absent-b>=1; extra == 'server'",
        "absent-c; extra == 'other'",
    )
    install("middle-thing", "2.5", "low_thing<3", "quick==1; extra == 'fast'", "top-thing")
    install("low-thing", "3.1")
    install("quick", "1")
    found = needs("top-thing", ["server"])
    assert found == [
        Need("top-thing", "middle-thing", ">=2", "2.5", True),
        Need("top-thing", "absent-b", ">=1", None, False),
        Need("middle-thing", "low-thing", "<3", "3.1", False),
        Need("middle-thing", "quick", "==1", "1", True),
        Need("middle-thing", "top-thing", "", "1.0", True),
    ]


def test_needs_of_something_that_is_not_installed() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        needs("no-such-distribution-at-all")


def test_pins_are_read_with_markers_comments_and_options(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# a comment\n-r other.txt\nScikit_Image==0.26.0  # why\n"
        'here==1.0; python_version >= "3"\nnowhere==2; python_version < "3"\nfree>=3\n',
        encoding="utf-8",
    )
    assert pinned_versions(file) == {"scikit-image": "0.26.0", "here": "1.0"}


def test_locked_sets_hold_all_that_is_needed_and_no_more() -> None:
    """After a change of versions: make lock."""
    runtime = pinned_versions(ROOT / "requirements.txt")
    development = pinned_versions(ROOT / "requirements-dev.txt")
    wanted = needs(extras=["server"])
    assert {need.name for need in wanted} - {"esp-medsam-app"} == set(runtime)
    for_tests = {need.name for need in needs(extras=["server", "dev"])} - {"esp-medsam-app"}
    assert for_tests == set(runtime) | set(development)
    assert not set(runtime) & set(development)


def test_locked_sets_are_exact_and_name_no_place() -> None:
    line = re.compile(r'[a-z0-9-]+==[0-9][\w.]*(; sys_platform == "linux")?')
    for name in ("requirements.txt", "requirements-dev.txt"):
        for text in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if not text.startswith("#") and text != "-r requirements.txt":
                assert line.fullmatch(text), f"{name}: {text}"


def test_every_folder_with_code_is_a_package() -> None:
    """Else it works in a checkout and is missing from the wheel."""
    folders = {path.parent for path in (ROOT / "esp_medsam_app").rglob("*.py")}
    assert [str(path) for path in folders if not (path / "__init__.py").is_file()] == []


def test_package_data_names_every_other_file() -> None:
    project = read_configuration(ROOT / "pyproject.toml", expand=False)
    patterns = project["tool"]["setuptools"]["package-data"]["esp_medsam_app"]
    package = ROOT / "esp_medsam_app"
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    others = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".pyi")
    }
    assert {path.relative_to(package).as_posix() for path in others - covered} == set()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # as from a shell: not as a part of the `make test` that runs this
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_without_a_fitting_python_make_says_what_to_do(checkout: Path) -> None:
    done = make(checkout, "serve", "PYTHON=/bin/false")
    assert done.returncode != 0
    assert "Python 3.11 or 3.12 is needed" in done.stdout
    assert "make serve PYTHON=" in done.stdout
    assert not (checkout / ".venv").exists()


def test_serve_installs_only_when_the_requirements_are_newer(checkout: Path) -> None:
    first = make(checkout, "--dry-run", "serve").stdout
    assert first.index("pip install") < first.index("sample-data") < first.index("serve --studies")
    stamp = checkout / ".venv" / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    again = make(checkout, "--dry-run", "serve", "SERVE_ARGS=--port 8001").stdout
    assert "pip" not in again
    assert again.rstrip().endswith("--port 8001")
    newer = stamp.stat().st_mtime + 10
    os.utime(checkout / "requirements.txt", (newer, newer))
    assert "pip install" in make(checkout, "--dry-run", "serve").stdout


def test_make_test_runs_lint_types_and_tests_and_ci_runs_make_test(checkout: Path) -> None:
    commands = make(checkout, "--dry-run", "test").stdout
    for command in ("ruff format --check", "ruff check", "mypy", "pytest"):
        assert command in commands
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")


def test_cleaning_spares_the_labels_made_on_sample_data(checkout: Path) -> None:
    assert "sample_data" not in make(checkout, "--dry-run", "clean").stdout
    assert "sample_data" not in make(checkout, "--dry-run", "reinstall").stdout


def test_packages_of_debian_are_no_condition(tmp_path: Path) -> None:
    """Without root, network or apt-get continuous integration goes on; tests are skipped then."""
    for tool in ("bash", "grep", "id", "timeout", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = subprocess.run(
        [str(ROOT / ".ci" / "debian-packages"), "no-such-package"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": str(tmp_path)},
    )
    assert done.returncode == 0
    assert "no-such-package" in done.stderr
