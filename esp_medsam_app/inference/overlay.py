"""A picture of a segmentation: the slice in grey, labels in colour, a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.modalities import Intensity, Modality

_Rgb = tuple[int, int, int]

# distinguishable with every common colour blindness (Okabe and Ito, "Color Universal Design", 2008)
PALETTE: tuple[_Rgb, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
LONGEST_SIDE = 1024
# smaller slices are enlarged by whole factors until they have about this many pixels
_COMFORTABLE_SIDE = 512
_MAX_FACTOR = 4
_OPACITY = 0.35
_PERCENTILES = (0.5, 99.5)
_FONT_SIZE = 15
_LINE = 22
_MARGIN = 8
_BACKGROUND = (24, 24, 24)
_TEXT = (235, 235, 235)
_FAINT = (140, 140, 140)


def label_colour(value: int) -> _Rgb:
    """RGB of label `value` (1..N); colours repeat after the palette's seven."""
    return PALETTE[(value - 1) % len(PALETTE)]


def save_overlay(
    path: str | Path, image: MedicalImage, labels: np.ndarray, modality: Modality
) -> Path:
    """Draw `labels` (integer, [*image.grid.shape]) over `image` and write it to `path` as PNG.

    Of a volume, the slice with the most foreground is shown (the middle one when there is none), as
    `SliceView` cuts and turns it, with square pixels, and in the modality's window if it has one.
    The slice keeps its resolution up to 1024 pixels on the longest side, and small ones are
    enlarged. Atomic. Raises ValueError for labels of another shape and InputError when the file
    cannot be written.
    """
    path = Path(path)
    picture = render_overlay(image, labels, modality)
    try:
        with written_whole(path) as partial:
            picture.save(partial, format="PNG")
    except OSError as error:
        raise InputError(
            f"the overlay cannot be written ({error.strerror or error})",
            path=path,
            remedy="Choose a folder you may write to, with space left",
        ) from error
    return path


def render_overlay(image: MedicalImage, labels: np.ndarray, modality: Modality) -> Image.Image:
    """The picture `save_overlay` writes, as an RGB image: the slice and the legend below it."""
    if labels.shape != image.grid.shape:
        raise ValueError(f"labels {labels.shape} do not lie on the image's {image.grid.shape}")
    view = SliceView.of(image.grid)
    label_slices = view.slices(labels)
    index = _slice_to_show(label_slices)
    mask = np.asarray(label_slices[index])
    pixels = np.asarray(view.slices(image.voxels)[index])
    base = Image.fromarray(_as_rgb(pixels, modality.intensity))
    width, height = _display_size(mask.shape, view.in_plane_spacing)
    smaller = width < base.width or height < base.height
    base = base.resize(
        (width, height), Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
    )
    shown = np.asarray(
        Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    )
    picture = _blend(np.asarray(base), shown)
    title = f"slice {index + 1} of {len(label_slices)}" if len(label_slices) > 1 else ""
    return _with_legend(picture, modality, set(np.unique(mask).tolist()), title)


def _slice_to_show(slices: np.ndarray) -> int:
    foreground = np.count_nonzero(slices, axis=(1, 2))
    return int(foreground.argmax()) if foreground.any() else len(slices) // 2


def _display_size(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int]:
    """(width, height) with square pixels, none coarser than the slice's own, within the limits."""
    rows, columns = shape
    finest = min(spacing)
    height, width = rows * spacing[0] / finest, columns * spacing[1] / finest
    longest = max(height, width)
    if longest > LONGEST_SIDE:
        factor = LONGEST_SIDE / longest
    else:
        factor = float(min(_MAX_FACTOR, max(1, round(_COMFORTABLE_SIDE / longest))))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _as_rgb(pixels: np.ndarray, intensity: Intensity) -> np.ndarray:
    """`[H, W(, 3)]` of any type as uint8 `[H, W, 3]`.

    8-bit colour stays as it is, grey is shown in the modality's window or, without one, stretched.
    """
    if pixels.ndim == 3 and pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    values = np.nan_to_num(pixels.astype(np.float32))
    if intensity.kind == "window" and pixels.dtype != np.uint8:
        low, high = intensity.low, intensity.high
    else:
        low, high = np.percentile(values, _PERCENTILES)
    if high <= low:
        # a slice of nearly one value, e.g. a few bright voxels on nothing
        low, high = values.min(), values.max()
    scaled = (values - low) / max(float(high - low), 1e-12)
    grey = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def _blend(base: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels over the base: translucent inside, solid along their outline."""
    colours = np.zeros((256, 3), dtype=np.float32)
    for value in range(1, 256):
        colours[value] = label_colour(value)
    alpha = np.where(_outline(labels), 1.0, np.where(labels > 0, _OPACITY, 0.0))[..., None]
    return (base * (1 - alpha) + colours[labels] * alpha).round().astype(np.uint8)


def _outline(labels: np.ndarray) -> np.ndarray:
    """Label pixels with a direct neighbour of another label, background or the picture's edge."""
    padded = np.pad(labels, 1)
    centre = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    differs = np.zeros(labels.shape, dtype=bool)
    for neighbour in neighbours:
        differs |= neighbour != centre
    return differs & (labels > 0)


def _with_legend(
    picture: np.ndarray, modality: Modality, present: set[int], title: str
) -> Image.Image:
    """The picture with a line a label below it; labels not in the slice are faint and say so."""
    font = ImageFont.load_default(_FONT_SIZE)
    lines: list[tuple[str, _Rgb, _Rgb | None]] = [
        (f"{modality.name}  {title}".rstrip(), _TEXT, None)
    ]
    for name, value in modality.labels.items():
        here = value in present
        text = name if here else f"{name} (not here)"
        lines.append((text, _TEXT if here else _FAINT, label_colour(value)))
    swatch = _LINE - 8
    needed = max(
        font.getlength(text) + (swatch + _MARGIN if colour else 0) for text, _, colour in lines
    )
    height, width = picture.shape[:2]
    canvas = Image.new(
        "RGB",
        (max(width, int(needed) + 1 + 2 * _MARGIN), height + 2 * _MARGIN + _LINE * len(lines)),
        _BACKGROUND,
    )
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    top = height + _MARGIN
    for text, ink, colour in lines:
        left = _MARGIN
        if colour is not None:
            draw.rectangle((left, top + 4, left + swatch, top + 4 + swatch), fill=colour)
            left += swatch + _MARGIN
        draw.text((left, top + _LINE / 2), text, fill=ink, font=font, anchor="lm")
        top += _LINE
    return canvas
