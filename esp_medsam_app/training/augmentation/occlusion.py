"""What lies over an image: reflections, text and calipers, endoscope frames, panels, cut-outs.

Each function changes one image `[3, S, S]` in place, and takes what it hides out of the label map
`[S, S]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from esp_medsam_app.training.augmentation.draw import Draw

Occlusion = Callable[[Tensor, Tensor, Draw], None]


def highlights(image: Tensor, labels: Tensor, draw: Draw) -> None:
    """Reflections of a light source: small white spots. The structure below still counts."""
    del labels
    y, x = _pixels(image)
    for _ in range(draw.integer(1, 7)):
        row, column = draw.floats(2, 0, 1)
        long, short = draw.floats(2, 0.004, 0.03)
        distance = ((y - row) / long) ** 2 + ((x - column) / short) ** 2
        image.copy_(torch.maximum(image, (-(distance**2)).exp()))


def text_and_marks(image: Tensor, labels: Tensor, draw: Draw) -> None:
    """Burnt-in text, caliper crosses and the dotted lines of measurements."""
    del labels
    side = image.shape[-1]
    for _ in range(draw.integer(1, 4)):
        colour = image.new_tensor(draw.floats(3, 0.55, 1.0))
        if draw.integer(0, 1):
            colour = colour.mean().expand(3)
        if draw.integer(0, 2):
            _write(image, colour, draw)
        else:
            _calipers(image, colour, side, draw)


def _write(image: Tensor, colour: Tensor, draw: Draw) -> None:
    """A row of random glyphs near an edge."""
    side = image.shape[-1]
    height = max(5, round(side * draw.floats(1, 0.02, 0.05)[0]))
    glyphs = torch.rand(5, 4 * draw.integer(3, 14), generator=draw.generator) < 0.5
    # a gap behind each glyph of three columns
    glyphs[:, 3::4] = False
    width = min(side, max(glyphs.shape[1], round(glyphs.shape[1] * height / 6)))
    row = F.interpolate(glyphs.float()[None, None], size=(height, width), mode="nearest")[0, 0]
    top = int(draw.floats(1, 0, 0.15)[0] * side)
    if draw.integer(0, 1):
        top = side - height - top
    left = draw.integer(0, side - width)
    part = image[:, top : top + height, left : left + width]
    shown = row.to(image.device) > 0
    part.copy_(torch.where(shown, colour.view(3, 1, 1), part))


def _calipers(image: Tensor, colour: Tensor, side: int, draw: Draw) -> None:
    """Two crosses and the dotted line between them."""
    ends = draw.floats(4, 0.1, 0.9)
    steps = torch.linspace(0, 1, max(4, side // 8))
    rows = ((ends[0] + (ends[2] - ends[0]) * steps) * side).long().clamp(0, side - 1)
    columns = ((ends[1] + (ends[3] - ends[1]) * steps) * side).long().clamp(0, side - 1)
    image[:, rows, columns] = colour.view(3, 1)
    arm = max(2, side // 60)
    for row, column in ((rows[0], columns[0]), (rows[-1], columns[-1])):
        top, left = max(0, int(row) - arm), max(0, int(column) - arm)
        image[:, top : int(row) + arm + 1, column] = colour.view(3, 1)
        image[:, row, left : int(column) + arm + 1] = colour.view(3, 1)


def endoscope_frame(image: Tensor, labels: Tensor, draw: Draw) -> None:
    """The black surround of an endoscope's round or eight-sided field of view."""
    y, x = _pixels(image)
    row, column = draw.floats(2, 0.45, 0.55)
    radius = draw.floats(1, 0.46, 0.68)[0]
    y, x = (y - row).abs(), (x - column).abs()
    if draw.integer(0, 1):
        outside = y**2 + x**2 > radius**2
    else:
        straight, corner = draw.floats(2, 0.42, 0.5)
        outside = (torch.maximum(y, x) > straight) | (y + x > radius + corner - 0.35)
    _hide(image, labels, outside, image.new_full((3,), draw.floats(1, 0, 0.06)[0]))


def panels(image: Tensor, labels: Tensor, draw: Draw) -> None:
    """A box in a corner or a bar along an edge: a second picture, redacted text, controls."""
    side = image.shape[-1]
    height, width = (max(2, round(side * share)) for share in draw.floats(2, 0.08, 0.3))
    if draw.integer(0, 2) == 0:
        height = side
    top = draw.integer(0, 1) * (side - height)
    left = draw.integer(0, 1) * (side - width)
    _fill(image, labels, (top, left, height, width), draw)


def cutout(image: Tensor, labels: Tensor, draw: Draw) -> None:
    """One to three boxes anywhere that hide the image: instruments, missing data."""
    side = image.shape[-1]
    for _ in range(draw.integer(1, 3)):
        height, width = (max(2, round(side * share)) for share in draw.floats(2, 0.04, 0.18))
        top, left = draw.integer(0, side - height), draw.integer(0, side - width)
        _fill(image, labels, (top, left, height, width), draw)


def _fill(image: Tensor, labels: Tensor, box: tuple[int, int, int, int], draw: Draw) -> None:
    """Fill a box (top, left, height, width) with black, one colour or noise; grey stays grey."""
    top, left, height, width = box
    part = (slice(None), slice(top, top + height), slice(left, left + width))
    kind = draw.integer(0, 2)
    colour = image.new_tensor(draw.floats(3, 0, 0.9) if kind else [0.0, 0.0, 0.0])
    if torch.equal(image[0], image[1]):
        colour = colour.mean().expand(3)
    content = colour.view(3, 1, 1).expand(3, height, width)
    if kind == 2:
        content = (content + 0.2 * draw.normal(1, height, width)).clamp(0, 1)
    image[part] = content
    labels[part[1:]] = 0


def _hide(image: Tensor, labels: Tensor, where: Tensor, colour: Tensor) -> None:
    image.copy_(torch.where(where, colour.view(3, 1, 1), image))
    labels.masked_fill_(where, 0)


def _pixels(image: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, 0 to 1, as `[S, 1]` and `[1, S]`."""
    height, width = image.shape[-2:]
    y = (torch.arange(height, device=image.device) + 0.5) / height
    x = (torch.arange(width, device=image.device) + 0.5) / width
    return y[:, None], x[None, :]
