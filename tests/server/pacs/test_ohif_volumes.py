"""What OHIF is offered as the next image: volumes that it can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.dicom_phantoms import enhanced, localizer_of, phases, picture, volume
from support.fake_pacs import FakePacs
from support.pacs_stores import MakeStore

from esp_medsam_app.active_learning.leases import Leases
from esp_medsam_app.server.ohif_volumes import OHIF, ohif_shows
from esp_medsam_app.server.strategies import FirstImage


def kinds() -> dict[str, list[Any]]:
    slices = volume(6)
    return {
        "axial": volume(5),
        "mr": volume(4, modality="MR"),
        "frames": [enhanced(5)],
        "single": volume(1),
        "x-ray": [picture("CR")],
        "photograph": [picture("XC", colour=True)],
        "phases": phases(4),
        "localizer": [localizer_of(slices), *slices],
    }


def test_only_volumes(make: MakeStore, pacs: FakePacs, tmp_path: Path) -> None:
    pacs.instances.clear()
    uids = {}
    for kind, slices in kinds().items():
        pacs.instances += slices
        uids[kind] = str(slices[0].SeriesInstanceUID)
    store = make()
    shown = {kind for kind, uid in uids.items() if ohif_shows(store.get_image_info(uid))}
    # what the archive tells of a series does not tell how many frames or images are in it
    assert shown == {"axial", "mr", "phases", "localizer"}
    for uid in uids.values():
        try:
            store.original(uid)
        except Exception:
            continue
    images = store.list_images()
    shown = {kind for kind, uid in uids.items() for image in images
             if image.startswith(uid) and ohif_shows(store.get_image_info(image))}  # fmt: skip
    assert shown == {"axial", "mr", "frames"}
    strategy = FirstImage(Leases(tmp_path / "leases.sqlite3"))
    offered = {(strategy({"viewer": OHIF}, store) or {}).get("id") for _ in range(12)}
    assert offered == {uids[kind] for kind in shown}
    # viewers of other kinds get all of them
    offered = {(strategy({}, store) or {}).get("id") for _ in range(12)}
    assert len(offered) > len(shown)


@pytest.mark.parametrize(
    ("info", "shown"),
    [({}, False), ({"Modality": "CT"}, True), ({"Modality": "CT", "instances": 1}, False),
     ({"Modality": "US", "instances": 40}, False), ({"Modality": "MR", "instances": 2}, True),
     ({"Modality": "CT", "instances": 1, "is_volume": True}, True),
     ({"Modality": "CT", "instances": 9, "is_volume": False}, False)],
)  # fmt: skip
def test_by_what_is_known(info: dict[str, Any], shown: bool) -> None:
    assert ohif_shows(info) is shown


def test_names_are_of_the_files_that_are_sent(make: MakeStore, pacs: FakePacs) -> None:
    """3D Slicer keeps the download by that name, and ITK reads it by its end."""
    coloured = picture("XC", colour=True)
    pacs.instances.append(coloured)
    store = make()
    for image in store.list_images():
        file = Path(store.get_image_uri(image))
        assert store.get_image_info(image)["name"] == file.name
        assert file.name == f"{image}.{'png' if image == coloured.SeriesInstanceUID else 'nii.gz'}"
