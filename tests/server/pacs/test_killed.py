"""kill -9 at each step of a submission, of its way to the PACS and of a download."""

from __future__ import annotations

import shutil

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset
from support.fake_pacs import FakePacs
from support.killed import killed_at_each_step
from support.pacs_stores import MakeStore, WriteLabel

from esp_medsam_app.data.dicom_seg_reading import labels_on
from esp_medsam_app.data.reading import read_image
from esp_medsam_app.server.pacs.archived_labels import INSTANCE
from esp_medsam_app.server.pacs.datastore import PacsDatastore

LIVER = {"label_info": [{"name": "liver"}], "model": "esp_medsam_ct_organs"}
SPLEEN = {"label_info": [{"name": "spleen"}], "model": "esp_medsam_ct_organs"}


def value_of(store: PacsDatastore, image: str) -> int:
    return int(np.asanyarray(nib.load(store.get_label_uri(image, "final")).dataobj).max())


def newest(pacs: FakePacs) -> Dataset:
    return pacs.segmentations()[-1]


def test_submitting(pacs: FakePacs, series: str, make: MakeStore, label_map: WriteLabel) -> None:
    """The label before or the new one is there, and is what the PACS gets."""
    store = make()
    liver, spleen = label_map(store, series, 1), label_map(store, series, 1, 1)
    grid = read_image(store.original(series)).grid
    store.save_label(series, liver, "final", LIVER)
    kept = []
    for step in killed_at_each_step(lambda: make().save_label(series, spleen, "final", SPLEEN)):
        again = make()
        kept.append(value_of(again, series))
        assert kept[-1] in (1, 2)
        assert again.outbox.waiting() == [series]
        if kept[-1] == 2:
            (before, *_) = again.label_versions(series, "final")
            assert np.asanyarray(nib.load(before).dataobj).max() == 1
        if step % 8 == 0:
            here = np.asanyarray(nib.load(again.get_label_uri(series, "final")).dataobj)
            assert again.outbox.send_all() == 1
            assert np.array_equal(labels_on(newest(pacs), grid), here)
        again.save_label(series, liver, "final", LIVER)
    assert {kept[0], kept[-1]} == {1, 2}


def test_sending(pacs: FakePacs, series: str, make: MakeStore, label_map: WriteLabel) -> None:
    """Whatever was under way, the PACS has each label once, and the server knows."""
    store = make()
    maps = [label_map(store, series, 1), label_map(store, series, 1, 1)]
    store.save_label(series, maps[0], "final", LIVER)
    count = 0
    for step in killed_at_each_step(lambda: make().outbox.send_all() and None):
        again = make()
        again.outbox.send_all()
        count += 1
        assert again.outbox.waiting() == []
        assert len(pacs.segmentations()) == count
        assert again.get_label_info(series, "final")[INSTANCE] == newest(pacs).SOPInstanceUID
        again.save_label(series, maps[(step + 1) % 2], "final", LIVER)
    assert count > 3


def test_downloading(pacs: FakePacs, series: str, make: MakeStore) -> None:
    """The series is whole, or it is not there."""
    for _ in killed_at_each_step(lambda: make().get_image_uri(series) and None):
        again = make()
        found = again.cache.find(series)
        assert found is None or len(found.parts[0].files) == 6
        assert nib.load(again.get_image_uri(series)).shape == (12, 10, 6)
        assert read_image(again.original(series)).voxels.shape == (12, 10, 6)
        shutil.rmtree(again.cache.folder)
        shutil.rmtree(again.cache.folder.parent / "converted")
