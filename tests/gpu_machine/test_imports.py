"""What trains, and all that a borrowed machine runs, imports nothing that is not there."""

from __future__ import annotations

import subprocess
import sys

from support.bare_machine import MISSING, without

_PROGRAM = """
import esp_medsam_app.gpu_machine.__main__
import esp_medsam_app.gpu_machine.running
import esp_medsam_app.gpu_machine.worker
import esp_medsam_app.gpu_machine.costs
import esp_medsam_app.gpu_machine.inference_figures

# DeSAM's losses and the Hausdorff distance are MONAI's
Missing.names = {rooms}
import importlib, pkgutil
for name in ("esp_medsam_app.training", "esp_medsam_app.networks"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        importlib.import_module(module.name)
"""
_NEVER = {"monailabel", "SimpleITK", "nibabel", "pydicom", "typer"}


def test_training_and_what_a_borrowed_machine_runs_import_only_what_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", without(MISSING) + _PROGRAM.format(rooms=_NEVER)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
