"""Write requirements.txt and requirements-dev.txt from what is installed beside this interpreter.

    .venv/bin/python scripts/lock_requirements.py        (or: make lock)

Run it after the tests have passed with the installed versions. It follows the package's own
requirements, so that tools installed by hand are left out, and refuses a set that contradicts
itself.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from esp_medsam_app.installation import DISTRIBUTION, Need, needs

ROOT = Path(__file__).resolve().parent.parent
# only torch's wheels for Linux ask for these
LINUX_ONLY = ("cuda-", "nvidia-", "triton")
RUNTIME_HEADER = """\
# The exact set that is tested: Python 3.11, Linux; written by `make lock`.
# scikit-image is pinned because sample images come out of its wheel.
# sam2 (of monailabel) is built here and imports torch while it is. `make serve` therefore installs
# setuptools and torch first and the rest with --no-build-isolation: else pip fetches torch twice.
"""
DEV_HEADER = """\
# What `make test` needs beside requirements.txt; written by `make lock`.
-r requirements.txt
"""


def main() -> int:
    """Write both files; 1 if the installed set contradicts itself."""
    runtime, everything = needs(extras=["server"]), needs(extras=["server", "dev"])
    unmet = [need for need in everything if not need.met]
    for need in unmet:
        print(f"{need.by} needs {need.name}{need.wanted}, found {need.found}", file=sys.stderr)
    if unmet:
        return 1
    first = _pins(runtime)
    _write("requirements.txt", RUNTIME_HEADER, first)
    _write("requirements-dev.txt", DEV_HEADER, _pins(everything) - first)
    return 0


def _pins(wanted: list[Need]) -> set[str]:
    return {
        f"{need.name}=={metadata.version(need.name)}"
        + ('; sys_platform == "linux"' if need.name.startswith(LINUX_ONLY) else "")
        for need in wanted
        if need.name != DISTRIBUTION
    }


def _write(name: str, header: str, pins: set[str]) -> None:
    (ROOT / name).write_text(header + "\n".join(sorted(pins)) + "\n", encoding="utf-8")
    print(f"{name}: {len(pins)} packages")


if __name__ == "__main__":
    sys.exit(main())
