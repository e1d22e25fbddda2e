"""The rooms of the house: imports run downwards only, and networks know torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from PIL import Image

import esp_medsam_app

PACKAGE = Path(esp_medsam_app.__file__).parent
# Each room may import from those below it.
ORDER = [
    "cli",
    "commands",
    "diagnosis",
    "gpu_machine",
    "benchmark",
    "backup",
    "server",
    "learning",
    "baselines",
    "dataset",
    "training",
    "active_learning",
    "evaluation",
    "samples",
    "inference",
    "weights",
    "networks",
    "modalities",
    "data",
    "installation",
    "errors",
    "telemetry",
]
TORCH_ONLY = {"torch", "segment_anything", "esp_medsam_app"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_run_downwards() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        if room == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "esp_medsam_app" or len(parts) < 2 or parts[1] == "__version__":
                continue
            if ORDER.index(parts[1]) < ORDER.index(room):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_networks_are_pure_torch() -> None:
    allowed = TORCH_ONLY | {"__future__", "collections", "dataclasses", "typing"}
    for path in (PACKAGE / "networks").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_only_the_server_knows_monai_label() -> None:
    knowing = {
        room_of(path)
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == "monailabel" for name in imports(path))
    }
    assert knowing == {"server"}


def test_training_needs_no_hospital_software(tmp_path: Path) -> None:
    """A GPU host has torch and segment-anything; DICOM and MONAI Label stay at home."""
    program = """
import sys
for name in ("monailabel", "pydicom", "SimpleITK"):
    sys.modules[name] = None  # an import of it fails
import esp_medsam_app.cli
import esp_medsam_app.commands.distill, esp_medsam_app.commands.train
import esp_medsam_app.training.distillation, esp_medsam_app.training.trainer
from esp_medsam_app.data.reading import read_image
print(read_image(sys.argv[1]).voxels.shape)
"""
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(picture)
    done = subprocess.run(
        [sys.executable, "-c", program, str(picture)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
