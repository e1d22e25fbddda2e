"""Libraries that report to their makers are told not to: a hospital's server talks to nobody."""

from __future__ import annotations

import os
import sys

# what MLflow and others ask for; whoever sets it to `false` has chosen otherwise
OFF = {"MLFLOW_DISABLE_TELEMETRY": "true"}


def switch_off() -> None:
    """For this process and those that it starts."""
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
    # MONAI Label imports it before this package; it has sent nothing yet, and looks again
    loaded = sys.modules.get("mlflow.telemetry")
    if loaded is not None:
        loaded.set_telemetry_client()
