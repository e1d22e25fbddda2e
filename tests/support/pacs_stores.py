"""What the tests of the PACS datastore share."""

from __future__ import annotations

from collections.abc import Callable

from support.fake_server import ORGANS, SPOTS

from esp_medsam_app.server.pacs.client import TimeOuts
from esp_medsam_app.server.pacs.datastore import PacsDatastore

QUICK = TimeOuts(search=0.5, transfer=0.5, pause=60)
MODELS = {"esp_medsam_ct_organs": ORGANS, "esp_medsam_spots": SPOTS}

MakeStore = Callable[..., PacsDatastore]
# store, image, values, shift in mm; returns the file
WriteLabel = Callable[..., str]
