"""Sample data: real images of installed packages, and phantoms drawn here."""

from esp_medsam_app.samples.builder import (
    SampleCase,
    SampleData,
    build_sample_data,
    description,
    is_complete,
    sample_cases,
    to_json,
)

__all__ = [
    "SampleCase",
    "SampleData",
    "build_sample_data",
    "description",
    "is_complete",
    "sample_cases",
    "to_json",
]
