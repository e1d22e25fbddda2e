"""Checks of data folders before a training: pairs, labels, suspicious cases, leaks."""

from esp_medsam_app.evaluation.data_check.check import check_data
from esp_medsam_app.evaluation.data_check.report import DataReport, Finding

__all__ = ["DataReport", "Finding", "check_data"]
