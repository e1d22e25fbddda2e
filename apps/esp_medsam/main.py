"""What `monailabel start_server --app apps/esp_medsam` loads."""

from __future__ import annotations

from typing import ClassVar

from lib.configs.desam import DeSam
from lib.configs.esp_medsam import EspMedSam
from monailabel.interfaces.app import MONAILabelApp

from esp_medsam_app.server import app as server


# MONAI Label looks for a class that names MONAILabelApp as its direct base.
class MyApp(server.EspMedSamApp, MONAILabelApp):
    """The families of models that are served."""

    families: ClassVar = {"esp_medsam": EspMedSam, "desam": DeSam}
