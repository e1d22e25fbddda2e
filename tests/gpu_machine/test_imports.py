"""What trains, and all that a borrowed machine runs, imports nothing that is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.bare_machine import MISSING, without

_ALL = """
import importlib, pkgutil
for name in {packages}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
"""
_THERE = """
from esp_medsam_app.gpu_machine.__main__ import main
import esp_medsam_app.gpu_machine.running
import esp_medsam_app.gpu_machine.worker
import esp_medsam_app.gpu_machine.costs
import esp_medsam_app.gpu_machine.inference_figures
"""


@pytest.mark.parametrize(
    ("names", "program"),
    [
        # DeSAM's losses and the Hausdorff distance are MONAI's
        (
            {"monailabel", "SimpleITK", "nibabel", "pydicom", "typer"},
            _ALL.format(packages=["esp_medsam_app.training", "esp_medsam_app.networks"]),
        ),
        (MISSING, _THERE),
    ],
    ids=["rooms", "run"],
)
def test_imports(names: set[str], program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", without(names) + program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
