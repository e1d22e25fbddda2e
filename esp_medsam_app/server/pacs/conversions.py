"""Files that viewers download in place of an image's instances."""

from __future__ import annotations

import os
from pathlib import Path

from esp_medsam_app.data.writing import write_image
from esp_medsam_app.server.pacs.pointers import place_of
from esp_medsam_app.server.reading import read_image

# what `write_image` makes of grey images, and of coloured pictures
_VOLUME, _PICTURE = ".nii.gz", ".png"


class Conversions:
    """NIfTI and PNG files of images, made when they are asked for.

    Args:
        folder: that holds them.
        series: the folder of the series' instances; files of others than these may go.
    """

    def __init__(self, folder: Path, series: Path) -> None:
        self._folder = folder
        self._series = series

    def file(self, image_id: str, instances: Path) -> Path:
        """The file of an image, made anew where its instances are younger.

        Raises:
            InputError: the instances are no image that viewers can show.
        """
        for suffix in (_VOLUME, _PICTURE):
            file = self._folder / f"{image_id}{suffix}"
            if file.is_file() and file.stat().st_mtime >= instances.stat().st_mtime:
                os.utime(file)
                return file
        self._forget()
        return write_image(self._folder / image_id, read_image(instances))

    def name(self, image_id: str) -> str:
        """The name of an image's file; it is certain once the file was made."""
        is_picture = (self._folder / f"{image_id}{_PICTURE}").is_file()
        return f"{image_id}{_PICTURE if is_picture else _VOLUME}"

    def _forget(self) -> None:
        """Files of series that are not here any more can be made again."""
        for file in self._folder.iterdir() if self._folder.is_dir() else ():
            place = place_of(file.name.removesuffix(_VOLUME).removesuffix(_PICTURE))
            if place is None or not (self._series / place.series).is_dir():
                file.unlink(missing_ok=True)
