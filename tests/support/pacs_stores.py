"""What the tests of the PACS datastore share."""

from __future__ import annotations

from collections.abc import Callable

from support.fake_server import ORGANS, SPOTS

from esp_medsam_app.server.pacs.client import TimeOuts
from esp_medsam_app.server.pacs.datastore import PacsDatastore

# for archives that answer, on machines with other things to do
PATIENT = TimeOuts(search=60, transfer=60, pause=60)
# for archives that do not
QUICK = TimeOuts(search=0.3, transfer=0.3, pause=60)
MODELS = {"esp_medsam_ct_organs": ORGANS, "esp_medsam_spots": SPOTS}

MakeStore = Callable[..., PacsDatastore]
# store, image, values, shift in mm; returns the file
WriteLabel = Callable[..., str]
