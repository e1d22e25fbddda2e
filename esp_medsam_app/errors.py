"""Errors whose message is meant for the person at the screen.

Every front door (command line, server) shows the message as it is: which file, what is wrong,
what to do. Anything else that is raised is a defect of this project.
"""

from __future__ import annotations

from pathlib import Path


class EspMedSamError(Exception):
    """Base of the errors that are explained to the user."""

    def __init__(self, problem: str, *, path: str | Path | None = None, remedy: str = "") -> None:
        self.problem = problem
        self.path = path
        self.remedy = remedy
        text = f"{path}: {problem}" if path is not None else problem
        super().__init__(f"{text}. {remedy}" if remedy else text)


class InputError(EspMedSamError):
    """An image or label file that cannot be used as it is."""


class OtherModalityError(InputError):
    """An image that looks like one of another modality than the one that was chosen for it."""


class UnknownNameError(EspMedSamError):
    """A modality, model, label or bundle that does not exist here."""


class WeightsError(EspMedSamError):
    """A weight file that is missing, damaged or made for another network."""


class OutOfMemoryError(EspMedSamError):
    """The device has too little memory, even for the smallest batch."""


class UnreachableError(EspMedSamError):
    """Another server, the hospital's PACS, that does not answer or refuses to."""


class BusyError(EspMedSamError):
    """The server has too much to do at this moment."""


class FullDiskError(EspMedSamError):
    """A disk that the server writes to and that has too little room."""
