"""Splitting cases by patient, stable however many cases are added later."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

from esp_medsam_app.data.dicom_bytes import read_dataset
from esp_medsam_app.data.formats import DICOM, is_dicom_file, suffix_of
from esp_medsam_app.errors import InputError

# What anonymisers leave in PatientID (0010,0020): such cases are not one patient.
_NOBODY = {"", "0", "anon", "anonym", "anonymised", "anonymized", "anonymous", "none", "unknown"}


def split_of(patient: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """The split that a patient's cases belong to.

    Depends on nothing but the arguments: cases that are added later never move another one. The
    SHA-256 of seed and patient is a number in [0, 1); the splits share that interval in the order
    of their names.

    Args:
        patient: any key, such as DICOM's PatientID.
        shares: parts of all patients by split, relative to their sum.
        seed: another one gives another split.

    Raises:
        InputError: no share, one that is not positive, or one that is no number.
    """
    if not shares:
        raise InputError("there is no split to choose from", remedy="For example train=0.8 val=0.2")
    for name, share in shares.items():
        if not (math.isfinite(share) and share > 0):
            raise InputError(f"the share of '{name}' is {share:g}", remedy="Give a positive number")
    digest = hashlib.sha256(f"{seed}\0{patient}".encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * math.fsum(shares.values())
    *others, last = sorted(shares)
    end = 0.0
    for name in others:
        end += shares[name]
        if place < end:
            return name
    return last


def patient_pattern(text: str) -> re.Pattern[str]:
    """A regular expression that finds the patient in a file name, as its one group.

    Raises:
        InputError: it is none, or has no group or several.
    """
    remedy = r"For example '^(\d+)_' for 0042_left.png"
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(
            f"the patient pattern '{text}' is no regular expression ({error})", remedy=remedy
        ) from error
    if pattern.groups != 1:
        raise InputError(
            f"the patient pattern '{text}' has {pattern.groups} groups, not one", remedy=remedy
        )
    return pattern


def patient_of(image: Path, pattern: re.Pattern[str] | None = None) -> str | None:
    """Whose image this is: DICOM's PatientID, else what `pattern` finds in the file name.

    None if neither says so, or if the PatientID is one that anonymisers leave behind.
    """
    found = _dicom_patient(image)
    if found is None and pattern is not None:
        match = pattern.search(image.name)
        # a group may take no part in a match
        found = (match.group(1) or None) if match else None
    return found


def _dicom_patient(image: Path) -> str | None:
    try:
        files = sorted(image.iterdir()) if image.is_dir() else [image]
        file = next((path for path in files if path.is_file() and _is_dicom(path)), None)
        if file is None:
            return None
        header = read_dataset(
            file,
            force=True,
            stop_before_pixels=True,
            specific_tags=["PatientID", "IssuerOfPatientID"],
        )
    except Exception:  # damaged: reading the image tells
        return None
    patient = str(header.get("PatientID") or "").strip()
    if patient.casefold() in _NOBODY:
        return None
    # an id is unique only for whoever issued it
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    return f"{issuer}:{patient}" if issuer else patient


def _is_dicom(file: Path) -> bool:
    return suffix_of(file) in DICOM or is_dicom_file(file)
