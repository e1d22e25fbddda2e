"""Whether a label map lies on its image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esp_medsam_app.data.image import Grid
from esp_medsam_app.errors import InputError

_REMEDY = "Resample the label map onto the image's grid"


def check_alignment(
    label: Grid, image: Grid, *, path: Path | None = None, image_name: str = ""
) -> None:
    """Whether a label map lies on its image, voxel on voxel.

    Args:
        label: grid of the label map.
        image: grid of the image.
        path: of the label map, for the message.
        image_name: likewise.

    Raises:
        InputError: shapes differ, or corners lie apart by more than half the finest spacing where
            both know the patient's space; says what differs.
    """
    its_image = f"its image {image_name}".rstrip()
    check_shape(label.shape, image.shape, path=path, its_image=its_image)
    if not (label.has_patient_space and image.has_patient_space):
        return
    corners = np.array([(*c, 1) for c in product(*((0, n - 1) for n in [*image.shape, 1, 1][:3]))])
    apart = np.linalg.norm((corners @ (label.affine - image.affine).T)[:, :3], axis=1)
    if apart.max() <= 0.5 * min(image.spacing):
        return
    what, one, other = _difference(label, image)
    raise InputError(
        f"the label map lies elsewhere in the patient than {its_image}: its {what} is "
        f"({_numbers(one)}), the image's is ({_numbers(other)})",
        path=path,
        remedy=f"{_REMEDY}, or mend its header",
    )


def check_shape(
    label: Sequence[int],
    image: Sequence[int],
    *,
    path: Path | None = None,
    its_image: str = "its image",
) -> None:
    """Raises InputError where a label map has not as many voxels along each axis as its image."""
    if tuple(label) != tuple(image):
        raise InputError(
            f"the label map has {_extent(label)} voxels, {its_image} has {_extent(image)}",
            path=path,
            remedy=_REMEDY,
        )


def without_single_slice(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape in which a picture and a volume of a single slice are the same."""
    return tuple(shape[:2]) if tuple(shape[2:]) == (1,) else tuple(shape)


def _difference(label: Grid, image: Grid) -> tuple[str, Sequence[float], Sequence[float]]:
    if not np.allclose(label.spacing, image.spacing, rtol=1e-3):
        return "spacing", label.spacing, image.spacing
    turned, straight = _directions(label), _directions(image)
    if not np.allclose(turned, straight, atol=1e-2):
        return "orientation", turned.T.ravel().tolist(), straight.T.ravel().tolist()
    return "origin", label.affine[:3, 3].tolist(), image.affine[:3, 3].tolist()


def _directions(grid: Grid) -> NDArray[np.float64]:
    matrix = grid.affine[:3, :3]
    return np.asarray(matrix / np.linalg.norm(matrix, axis=0))


def _extent(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
