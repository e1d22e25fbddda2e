"""How much memory a file may take: decided by its header, before a voxel is read.

Files shrink by a thousand and more: a label map of 250 kB can unpack to gigabytes. What comes from
outside gets memory by its size, or by the size of the image that it is a label map of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_medsam_app.data.alignment import check_shape
from esp_medsam_app.data.trust import files_are_own
from esp_medsam_app.errors import InputError

# Below this nobody's memory suffers: a CT of 512 x 512 x 250 voxels.
LEAST = 256 << 20
# Images that cameras and scanners make shrink by two to thirty.
BYTES_A_BYTE = 60
# A label map may take what its image of 16 bits takes twice.
BYTES_A_VOXEL = 4


@dataclass(frozen=True)
class Admission:
    """What a file may become.

    Attributes:
        limit: bytes of memory, all that is needed at the same time; none: as it likes.
        as_labels: it is read as a label map.
        shape: of the image that it is a label map of; none where that is not known.
    """

    limit: int | None = None
    as_labels: bool = False
    shape: tuple[int, ...] | None = None

    @classmethod
    def of_image(cls, path: Path) -> Admission:
        """For a file, or a folder of a series, by its size on disk."""
        return cls(None if files_are_own() else _by_size(path))

    @classmethod
    def of_labels(
        cls, path: Path, shape: tuple[int, ...] | None, *, kept: bool = False
    ) -> Admission:
        """For a label map of an image of this shape; the image is here already.

        Args:
            path: its file.
            shape: of the image, where it is known.
            kept: it was admitted before.
        """
        if kept or files_are_own():
            limit = None
        elif shape is None:
            limit = _by_size(path)
        else:
            limit = max(LEAST, BYTES_A_VOXEL * math.prod(shape))
        return cls(limit, True, shape if limit is not None else None)

    def check(self, shape: Sequence[int], bytes_a_voxel: float, path: Path) -> None:
        """Refuse what is too large, or has more voxels than the image that it is a label map of.

        Where its shape is another one of fewer voxels, who reads it tells how they differ.

        Args:
            shape: of the grid that the header describes.
            bytes_a_voxel: that reading takes, working copies included.
            path: of the file.

        Raises:
            InputError: says what the file would take, or how the shapes differ.
        """
        if self.shape is not None and math.prod(shape) > math.prod(self.shape):
            check_shape(shape, self.shape, path=path)
        needed = math.prod(shape) * bytes_a_voxel
        if self.limit is not None and needed > self.limit:
            raise InputError(
                f"{' x '.join(map(str, shape))} voxels would take {_megabytes(needed)} of memory, "
                f"and such a file may take {_megabytes(self.limit)}",
                path=path,
                remedy="Save label maps with 8 or 16 bits a voxel"
                if self.as_labels
                else "Save the image uncompressed, or crop or downsample it",
            )


def _by_size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    return max(LEAST, BYTES_A_BYTE * sum(file.stat().st_size for file in files))


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB".replace(",", " ")
