"""Looking modalities up."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_medsam_app.errors import InputError, UnknownNameError
from esp_medsam_app.modalities import find_modality, get_modality
from esp_medsam_app.server.launch import app_folder


def test_by_name_or_by_the_file_of_ones_own() -> None:
    assert find_modality("ct_liver") == get_modality("ct_liver")
    own = find_modality(str(app_folder() / "examples" / "mr_prostate.yaml"))
    assert (own.name, list(own.labels)) == ("mr_prostate", ["prostate"])


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no modality 'knee'"):
        find_modality("knee")
    with pytest.raises(InputError, match=r"knee\.yaml: cannot be read"):
        find_modality(str(tmp_path / "knee.yaml"))
