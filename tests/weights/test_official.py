"""Checkpoints that are not what they are said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esp_medsam_app.errors import WeightsError
from esp_medsam_app.weights import load_official_checkpoint


class Harmful:
    """Pickled into a checkpoint, it would run code when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_official_checkpoint(tmp_path / "absent.pth")


def test_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "text.pth"
    path.write_text("weights")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_official_checkpoint(path)


def test_code_is_not_run(tmp_path: Path) -> None:
    path, target = tmp_path / "harmful.pth", tmp_path / "touched"
    torch.save({"model": Harmful(target)}, path)
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_official_checkpoint(path)
    assert not target.exists()


def test_another_models_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"layer.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"501 tensors do not fit"):
        load_official_checkpoint(path)
