"""Public data sets that bundles are trained on: what they are and what their licence allows.

A bundle names the licence of everything it learned from; weights trained on data for research
only must say so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

LicenceClass = Literal["permissive", "mixed", "non-commercial", "research only", "unclear"]


class Dataset(NamedTuple):
    """A data set as its publisher describes it.

    Attributes:
        title: for people.
        licence: as the publisher states it.
        licence_class: what the licence allows.
        site: pattern at the start of a file name that tells one hospital from another, where the
            data set has several.
    """

    title: str
    licence: str
    licence_class: LicenceClass
    site: str | None = None


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
    "polypgen": Dataset("PolypGen 2021, single frames", "CC-BY 4.0", "permissive", r"C\d"),
    "neopolyp": Dataset(
        "BKAI-IGH NeoPolyp-Small", "research and education only (terms)", "research only"
    ),
    "bus_bra_more": Dataset("BUS-BRA, further cases", "CC-BY 4.0", "permissive"),
    "stu_hospital": Dataset("STU-Hospital", "none stated", "unclear"),
    "btcv": Dataset("BTCV, Synapse syn3193805", "terms of Synapse", "unclear"),
    "btcv_volumes": Dataset("BTCV, whole volumes", "terms of Synapse", "unclear"),
    "curvas": Dataset("CURVAS 2024", "CC-BY-NC 4.0", "non-commercial"),
    "kits19": Dataset("KiTS19", "CC-BY-NC-SA 4.0", "non-commercial"),
    "chaos_t2": Dataset("CHAOS, MR T2-SPIR", "CC-BY-NC-SA 4.0", "non-commercial"),
    "hrf": Dataset("HRF", "CC-BY 4.0", "permissive"),
    "monuseg": Dataset("MoNuSeg 2018", "CC-BY-NC-SA 4.0", "non-commercial"),
    "monusac": Dataset("MoNuSAC 2020", "CC-BY-NC-SA 4.0", "non-commercial"),
    "deepliif_ihc": Dataset(
        "DeepLIIF sample data, Ki67", "Apache-2.0 with Commons Clause", "non-commercial"
    ),
    "mscmr_bssfp": Dataset(
        "MS-CMRSeg 2019, bSSFP", "research only (terms of the challenge)", "research only"
    ),
    "la2018_thin": Dataset(
        "2018 Atrial Segmentation Challenge, further crops of UA-MT",
        "research only (terms of the challenge)",
        "research only",
    ),
    "hvsmr": Dataset("HVSMR-2.0", "CC-BY 4.0", "permissive"),
    "prostate158": Dataset("Prostate158, T2", "CC-BY 4.0", "permissive"),
    "brisc2025": Dataset("BRISC 2025", "CC-BY 4.0", "permissive"),
    "msd04": Dataset(
        "Medical Segmentation Decathlon Task04 Hippocampus", "CC-BY-SA 4.0", "permissive"
    ),
}


def site_of(image: Path) -> str:
    """The hospital or data set that a training image comes from.

    The data set is the folder above `<split>/images`; a registered data set of several hospitals
    has the hospital in its file names.

    Args:
        image: path of the image file, or of the folder of a DICOM series.
    """
    parts = image.resolve().parts
    name = parts[-4] if len(parts) > 4 else ""
    known = DATASETS.get(name)
    found = re.match(known.site, image.name) if known is not None and known.site else None
    return name if found is None else f"{name}/{found.group()}"
