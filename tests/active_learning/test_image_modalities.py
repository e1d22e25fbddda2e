"""What images are of, kept on disk."""

from __future__ import annotations

from pathlib import Path

from esp_medsam_app.active_learning.image_modalities import ImageModalities, ImageModality


def test_it_is_kept(tmp_path: Path) -> None:
    seen = ImageModalities(tmp_path / "folder" / "modalities.sqlite3")
    assert seen.known() == {}
    seen.put("a", "1 2", ["ct_liver"])
    seen.put("b", "1 2", [])
    seen.put("c", "1 2", ["fundus_vessels", "xray_chest"])
    seen.put("a", "3 4", ["xray_chest"])
    again = ImageModalities(seen.path)
    assert again.known() == {
        "a": ImageModality("3 4", ("xray_chest",)),
        "b": ImageModality("1 2", ()),
        "c": ImageModality("1 2", ("fundus_vessels", "xray_chest")),
    }
    again.retain(["a", "x"])
    assert list(seen.known()) == ["a"]
