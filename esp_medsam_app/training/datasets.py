"""Public data sets that bundles are trained on: what they are and what their licence allows.

A bundle names the licence of everything it learned from; weights trained on data for research
only must say so.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

LicenceClass = Literal["permissive", "mixed", "research only", "unclear"]


class Dataset(NamedTuple):
    """A data set as its publisher describes it."""

    title: str
    licence: str
    licence_class: LicenceClass


# by the name of the folder that holds the splits
DATASETS: dict[str, Dataset] = {
    "dsb2018": Dataset("2018 Data Science Bowl, BBBC038", "CC0", "permissive"),
    "chase_db1": Dataset("CHASE_DB1, first observer", "CC-BY 4.0", "permissive"),
    "fives": Dataset("FIVES", "CC-BY 4.0", "permissive"),
    "covid_radiologists": Dataset(
        "COVID-19 image collection (ieee8023), masks by General Blockchain's radiologists",
        "masks CC-BY 4.0; images one by one: Apache 2.0, CC-BY, CC-BY-NC-SA or not stated",
        "mixed",
    ),
    "msd_liver_slices": Dataset(
        "Medical Segmentation Decathlon Task03 Liver, 8-bit slices", "CC-BY-SA 4.0", "permissive"
    ),
    "isic2017": Dataset("ISIC 2017, part 1", "CC0", "permissive"),
    "kvasir_seg": Dataset(
        "Kvasir-SEG", "research and education only (terms of Kvasir-SEG)", "research only"
    ),
    "bus_bra": Dataset("BUS-BRA", "CC-BY 4.0", "permissive"),
    "sunnybrook": Dataset("Sunnybrook Cardiac Data 2009", "CC0", "permissive"),
    "la2018": Dataset(
        "2018 Atrial Segmentation Challenge, crops of UA-MT",
        "research only (terms of the challenge)",
        "research only",
    ),
    "msd04": Dataset(
        "Medical Segmentation Decathlon Task04 Hippocampus", "CC-BY-SA 4.0", "permissive"
    ),
}
