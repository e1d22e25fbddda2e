"""Where files lie that can be made or fetched again: SAM's encoders, graphs of a runtime."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "ESP_MEDSAM_CACHE"


def cache_folder() -> Path:
    """What ESP_MEDSAM_CACHE names, else `esp_medsam` in the user's cache folder."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esp_medsam"
