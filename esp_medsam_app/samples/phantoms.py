"""Drawn images with exact reference masks, which look like what a modality's network knows.

Each function is deterministic. Their anatomy is made of a few smooth shapes: good for showing that
the whole path works and for a floor under the scores, not for measuring accuracy on patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import interpolate, ndimage

from esp_medsam_app.modalities import get_modality

# shapes are drawn this much larger and averaged, for smooth edges
_FINE = 4


@dataclass(frozen=True)
class Picture:
    """A drawn picture: `pixels` uint8 `[rows, columns]` or `[rows, columns, 3]`, with its labels.

    `labels` is uint8 `[rows, columns]`, ids as in the modality.
    """

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Volume:
    """A drawn CT volume.

    Attributes:
        hounsfield: int16 `[i, j, k]`, Hounsfield units.
        labels: uint8 `[i, j, k]`, ids as in the modality.
        affine: `[4, 4]`, index to RAS+ millimetres.
    """

    hounsfield: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def nuclei(seed: int = 7, rows: int = 256, columns: int = 320, count: int = 46) -> Picture:
    """Bright nuclei on a dark ground, as in fluorescence microscopy; label `nucleus`."""
    random = np.random.default_rng(seed)
    light = np.zeros((rows, columns))
    mask = np.zeros((rows, columns), dtype=bool)
    texture = ndimage.gaussian_filter(random.normal(size=(rows, columns)), 2.5)
    texture /= texture.std()
    for _ in range(40 * count):
        if count == 0:
            break
        blob = _blob(random, rows, columns)
        # a gap of two pixels, so that touching nuclei stay the exception
        if (ndimage.binary_dilation(blob, iterations=2) & mask).any():
            continue
        brightness = random.uniform(70, 170)
        light[blob] = brightness * (1 + 0.12 * texture[blob])
        mask |= blob
        count -= 1
    haze = 0.06 * ndimage.gaussian_filter(light, 14)
    light = 9 + haze + ndimage.gaussian_filter(light, 0.9)
    noisy = random.poisson(light * 4) / 4 + random.normal(0, 1.2, light.shape)
    labels = np.where(mask, get_modality("microscopy_nuclei").labels["nucleus"], 0)
    return Picture(_uint8(noisy), labels.astype(np.uint8))


def fundus(seed: int = 11, size: int = 512) -> Picture:
    """A fundus photograph: bright optic disc, darker macula, branching vessels; label `vessel`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    disc = np.array([0.76, 0.5])
    vessels = np.maximum.reduce(
        [
            _vessel_tree(random, size, disc, angle, width)
            for angle, width in [
                (-2.15, 6.6), (-1.95, 5.0), (2.2, 6.6), (1.95, 5.0),
                (-0.9, 4.0), (0.85, 4.0), (2.9, 2.6), (-2.95, 2.4),
            ]
        ]
    )  # fmt: skip
    radius = np.hypot(x - 0.5, y - 0.5)
    visible = radius < 0.485
    glow = 1 - 0.9 * np.clip(radius, 0, 0.5) ** 1.5
    macula = np.exp(-(((x - 0.38) ** 2 + (y - 0.52) ** 2) / (2 * 0.055**2)))
    head = 1 / (1 + np.exp((np.hypot((x - disc[0]) / 0.9, y - disc[1]) - 0.06) / 0.006))
    mottling = ndimage.gaussian_filter(random.normal(size=(size, size)), 9)
    mottling /= mottling.std()
    shade = glow * (1 - 0.28 * macula) * (1 + 0.03 * mottling)
    colour = shade[..., None] * np.array([205.0, 98.0, 48.0])
    colour += head[..., None] * (np.array([245.0, 205.0, 130.0]) - colour) * 0.85
    blurred = ndimage.gaussian_filter(vessels, 0.8)[..., None]
    colour *= 1 - blurred * np.array([0.26, 0.52, 0.42])
    colour += random.normal(0, 2.5, colour.shape)
    mask = (vessels > 0.5) & visible
    labels = np.where(mask, get_modality("fundus_vessels").labels["vessel"], 0)
    return Picture(_uint8(np.where(visible[..., None], colour, 4)), labels.astype(np.uint8))


def chest(seed: int = 5, rows: int = 480, columns: int = 512) -> Picture:
    """A frontal chest radiograph; the patient's left is on the image's right, as is usual.

    Labels `heart_mediastinum`, `left_lung` and `right_lung`.
    """
    random = np.random.default_rng(seed)
    size = (rows, columns)

    def shape(*points: tuple[float, float]) -> np.ndarray:
        return _smooth_polygon(np.array(points), size)

    right = shape(
        (0.31, 0.10), (0.39, 0.14), (0.425, 0.26), (0.43, 0.42), (0.42, 0.56), (0.405, 0.70),
        (0.32, 0.68), (0.21, 0.71), (0.10, 0.80), (0.105, 0.60), (0.14, 0.38), (0.21, 0.19),
    )  # fmt: skip
    left = shape(
        (0.66, 0.10), (0.585, 0.14), (0.555, 0.26), (0.565, 0.40), (0.595, 0.54), (0.63, 0.69),
        (0.79, 0.71), (0.90, 0.80), (0.89, 0.60), (0.85, 0.38), (0.77, 0.19),
    )  # fmt: skip
    heart = shape(
        (0.485, 0.23), (0.54, 0.26), (0.57, 0.34), (0.58, 0.44), (0.61, 0.55), (0.645, 0.66),
        (0.61, 0.73), (0.52, 0.75), (0.42, 0.72), (0.395, 0.60), (0.42, 0.46), (0.435, 0.32),
    )  # fmt: skip
    body = shape(
        (0.42, -0.2), (0.58, -0.2), (0.60, 0.03), (0.78, 0.09), (0.97, 0.20), (1.05, 0.5),
        (1.05, 1.2), (-0.05, 1.2), (-0.05, 0.5), (0.03, 0.20), (0.22, 0.09), (0.40, 0.03),
    )  # fmt: skip
    y, x = np.mgrid[0:rows, 0:columns]
    x, y = x / columns, y / rows

    def soft(mask: np.ndarray, sigma: float) -> np.ndarray:
        return ndimage.gaussian_filter(mask, sigma)

    density = 150 * soft(body, 5) + 15 * np.clip(y, 0, 1)
    # the side of the chest and the abdomen absorb more
    density += 35 * soft(((y > 0.72) & (heart < 0.5)).astype(float), 9)
    lungs = np.maximum(left, right) * (1 - heart)
    density -= 98 * soft(lungs, 3) * (1 - 0.25 * np.clip((y - 0.45) / 0.4, 0, 1))
    density += 55 * soft(heart, 4) + 22 * np.exp(-(((x - 0.49) / 0.035) ** 2))
    windpipe = np.exp(-(((x - 0.485) / 0.016) ** 2)) / (1 + np.exp((y - 0.27) / 0.02))
    density -= 22 * windpipe
    density += _ribs(x, y) * (0.35 + 0.65 * soft(lungs, 6))
    density += _lung_vessels(random, size) * soft(lungs, 4)
    density += 2.5 * ndimage.gaussian_filter(random.normal(size=size), 1.2) / 0.23
    density += random.normal(0, 2, size)
    ids = get_modality("xray_chest").labels
    labels = np.zeros(size, dtype=np.uint8)
    labels[right > 0.5] = ids["right_lung"]
    labels[left > 0.5] = ids["left_lung"]
    # the heart lies in front of the lungs
    labels[heart > 0.5] = ids["heart_mediastinum"]
    return Picture(_uint8(density), labels)


def abdomen(seed: int = 3, slices: int = 12) -> Volume:
    """A CT volume of the upper abdomen with contrast agent, 2 x 2 x 5 mm; label `liver`.

    The lowest two slices show kidneys and bowel but no liver. Indices run to the patient's left,
    back and head, as in volumes converted from axial DICOM series.
    """
    random = np.random.default_rng(seed)
    extents, spacing = (192, 160, slices), np.array([2.0, 2.0, 5.0])
    origin = -spacing * (np.array(extents) - 1) / 2
    i, j, k = np.meshgrid(*(np.arange(n) for n in extents), indexing="ij")
    # millimetres to the patient's left, back and head (DICOM's LPS), from the centre
    x, y, z = (origin[axis] + spacing[axis] * index for axis, index in enumerate((i, j, k)))
    # 0 at the lowest slice, 1 at the highest
    height = k / (slices - 1)

    body = _ellipsoid(x, y, z, (0, 4, 0), (168, 118, 1e4))
    wall = _ellipsoid(x, y, z, (0, 4, 0), (150, 101, 1e4))
    cavity = _ellipsoid(x, y, z, (0, -2, 0), (134, 84, 1e4))
    bulge = _ellipsoid(x, y, z, (0, 74, 0), (52, 36, 1e4)) < 1
    inside = (cavity < 1) & ~bulge
    volume = np.full(extents, -1000.0)
    volume[body < 1] = -105
    volume[wall < 1] = 55
    volume[inside] = -95
    _draw_bones(volume, x, y, height)

    liver = (_ellipsoid(x, y, z, (-62, -8, 12), (70, 72, 34)) < 1) | (
        _ellipsoid(x, y, z, (2, -42, 20), (62, 28, 20)) < 1
    )
    liver &= inside & (np.hypot(x, y - 62) > 46)
    spleen = (_ellipsoid(x, y, z, (104, 34, 12), (24, 42, 26)) < 1) & inside & ~liver
    stomach = (_ellipsoid(x, y, z, (62, -32, 6), (42, 34, 30)) < 1) & inside & ~liver & ~spleen
    volume[liver] = 112
    volume[spleen] = 122
    volume[stomach] = 28
    volume[stomach & (y < -44)] = -900
    for side in (-1, 1):
        kidney = _ellipsoid(x, y, z, (side * 64, 44, -26), (24, 22, 34))
        free = inside & ~liver & ~spleen
        volume[(kidney < 1) & free] = 175
        volume[(kidney < 0.25) & free] = 60
    bowel = (_ellipsoid(x, y, z, (0, -34, -36), (86, 30, 18)) < 1) & inside & ~liver & ~stomach
    loops = np.sin(x / 9 + 1.5 * np.cos(z / 5)) * np.sin(y / 8)
    volume[bowel & (loops > 0.1)] = 45
    volume[np.hypot(x - 14, y - 34) < 10] = 190
    volume[(np.hypot(x + 18, y - 30) < 12) & inside] = 145
    for branch in range(4):
        angle, tilt = 0.4 + 0.75 * branch, 14 * np.sin(2 * branch)
        along = (x + 62) * np.cos(angle) + (y + 8) * np.sin(angle)
        across = -(x + 62) * np.sin(angle) + (y + 8) * np.cos(angle)
        bent = across - 10 * np.sin(along / 22 + branch)
        vessel = (np.hypot(bent, z - 12 - tilt * along / 60) < 3.2) & (np.abs(along) < 52)
        volume[vessel & liver] = 150

    volume = ndimage.gaussian_filter(volume, (0.6, 0.6, 0))
    grain = ndimage.gaussian_filter(random.normal(size=extents), (0.7, 0.7, 0))
    volume += 10 * grain / grain.std()
    label = get_modality("ct_liver").labels["liver"]
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = np.array([-1, -1, 1]) * origin
    return Volume(
        np.clip(np.rint(volume), -1024, 3071).astype(np.int16),
        np.where(liver, label, 0).astype(np.uint8),
        affine,
    )


def _blob(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """The mask of one nucleus: an ellipse with a slightly wavy edge."""
    y, x = np.mgrid[0:rows, 0:columns]
    centre_x, centre_y = random.uniform(0, columns), random.uniform(0, rows)
    radius, elongation = random.uniform(8, 17), random.uniform(0.65, 1.0)
    turn = random.uniform(0, np.pi)
    along = (x - centre_x) * np.cos(turn) + (y - centre_y) * np.sin(turn)
    across = -(x - centre_x) * np.sin(turn) + (y - centre_y) * np.cos(turn)
    angle = np.arctan2(across, along)
    waves = sum(
        random.uniform(0, 0.05) * np.cos(n * angle + random.uniform(0, 6.3)) for n in (2, 3, 4)
    )
    return np.hypot(along, across / elongation) < radius * (1 + waves)


def _vessel_tree(
    random: np.random.Generator, size: int, start: np.ndarray, angle: float, width: float
) -> np.ndarray:
    """A vessel with its branches as coverage 0..1, `[size, size]`.

    `start` as fraction (x, y), `angle` in radians from the x axis, `width` in pixels.
    """
    canvas = Image.new("L", (size * _FINE, size * _FINE))
    draw = ImageDraw.Draw(canvas)
    waiting = [(np.array(start, dtype=float), angle, width, angle)]
    while waiting:
        point, heading, thickness, aim = waiting.pop()
        step = 0.008
        while thickness > 1.0 and np.hypot(*(point - 0.5)) < 0.5:
            # wander about the aim, and bend towards the horizontal like the vessel arcades
            heading += random.normal(0, 0.05) + 0.04 * (aim - heading)
            aim -= 0.012 * np.sign(np.sin(aim))
            following = point + step * np.array([np.cos(heading), np.sin(heading)])
            line = [tuple(point * size * _FINE), tuple(following * size * _FINE)]
            draw.line(line, fill=255, width=max(1, round(thickness * _FINE)))
            half = thickness * _FINE / 2
            cx, cy = following * size * _FINE
            draw.ellipse([cx - half, cy - half, cx + half, cy + half], fill=255)
            point, thickness = following, thickness * 0.991
            if random.random() < 0.035 and thickness > 1.4:
                side = random.choice([-1, 1]) * random.uniform(0.5, 1.0)
                waiting.append((point, heading + side, thickness * 0.65, heading + side))
    return np.asarray(canvas.reduce(_FINE), dtype=float) / 255


def _smooth_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A closed smooth curve through `points` (fractions x, y), filled: coverage 0..1, `size`."""
    rows, columns = size
    closed = np.vstack([points, points[:1]])
    ends = np.arange(len(closed))
    curve = interpolate.CubicSpline(ends, closed, bc_type="periodic")(
        np.linspace(0, len(points), 40 * len(points))
    )
    canvas = Image.new("L", (columns * _FINE, rows * _FINE))
    scaled = curve * np.array([columns, rows]) * _FINE
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in scaled], fill=255)
    return np.asarray(canvas.reduce(_FINE), dtype=float) / 255


def _ribs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brightness added by ribs and clavicles."""
    total = np.zeros_like(x)
    away = np.abs(x - 0.5)
    for number in range(9):
        # back parts fall off to the side; front parts, fainter, rise
        back = 0.09 + 0.075 * number + 1.1 * (away - 0.12) ** 2 - 0.05 * away
        total += 20 * np.exp(-(((y - back) / 0.011) ** 2)) * (away < 0.43)
        front = 0.34 + 0.09 * number - 0.75 * (away - 0.08)
        total += 11 * np.exp(-(((y - front) / 0.013) ** 2)) * (away > 0.2) * (away < 0.43)
    clavicle = 0.155 - 0.22 * (away - 0.05) + 0.25 * (away - 0.2) ** 2
    return total + 26 * np.exp(-(((y - clavicle) / 0.014) ** 2)) * (away > 0.05) * (away < 0.38)


def _lung_vessels(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Brightness added by lung vessels: streaks that leave the two hila."""
    rows, columns = size
    canvas = Image.new("L", (columns, rows))
    draw = ImageDraw.Draw(canvas)
    for side in (-1, 1):
        for _ in range(34):
            point = np.array([0.5 + side * 0.11, 0.42]) + random.normal(0, 0.03, 2)
            heading = np.arctan2(random.normal(0.1, 0.9), side * 1.0)
            for length in range(int(random.uniform(8, 22))):
                following = point + 0.014 * np.array([np.cos(heading), np.sin(heading)])
                ends = [tuple(p * np.array([columns, rows])) for p in (point, following)]
                draw.line(ends, fill=255, width=3 if length < 5 else 2 if length < 11 else 1)
                point, heading = following, heading + random.normal(0, 0.16)
    return 38 * ndimage.gaussian_filter(np.asarray(canvas, dtype=float) / 255, 1.4)


def _ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> np.ndarray:
    """Below 1 inside; all in millimetres."""
    parts = zip((x, y, z), centre, radii, strict=True)
    return np.asarray(sum(((value - mid) / radius) ** 2 for value, mid, radius in parts))


def _draw_bones(volume: np.ndarray, x: np.ndarray, y: np.ndarray, height: np.ndarray) -> None:
    """Draw vertebrae and ribs into Hounsfield units; x to the left, y to the back, mm."""
    vertebra = np.hypot(x / 24, (y - 60) / 18)
    arch = np.hypot(x / 18, (y - 88) / 13)
    canal = np.hypot(x / 10, (y - 86) / 9)
    volume[(arch < 1) | ((np.abs(x) < 4) & (y > 92) & (y < 112))] = 420
    volume[(np.abs(x) < 44) & (np.abs(y - 86) < 5)] = 380
    volume[vertebra < 1] = 600
    volume[vertebra < 0.86] = 260
    volume[canal < 1] = 30
    angle = np.arctan2(y - 2, x)
    ring = np.hypot(x / 142, (y - 2) / 92)
    for number in range(6):
        # ribs fall off towards the front, so that each slice cuts them elsewhere
        at = 0.1 + number * 0.52 + 0.35 * height
        for side in (1, -1):
            turn = np.angle(np.exp(1j * (angle - (np.pi / 2 - side * at))))
            volume[(np.abs(turn) < 0.07) & (np.abs(ring - 1) < 0.035)] = 520


def _uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
