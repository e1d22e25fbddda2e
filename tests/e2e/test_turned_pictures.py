"""A browser turns a camera's picture and its label map alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import Seen, browser, page, why_not

from esp_medsam_app.data.reading import read_image
from esp_medsam_app.data.turns import TAG
from esp_medsam_app.data.writing import write_label_map

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a browser"),
]

_PIXELS = """ids => ids.map(id => {
    const image = document.getElementById(id), canvas = document.createElement('canvas');
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, Array.from(data).filter((_, i) => i % 4 === 0)];
})"""


def test_every_orientation(tmp_path: Path) -> None:
    stored = np.zeros((20, 40), np.uint8)
    stored[:6], stored[:, :9] = 255, 255
    ids, tags = [], []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[TAG] = orientation
        picture = tmp_path / f"{orientation}.jpg"
        Image.fromarray(stored).save(picture, exif=exif, quality=100)
        image = read_image(picture)
        labels = np.where(image.voxels > 128, 255, 0).astype(np.uint8)
        write_label_map(tmp_path / f"{orientation}.png", labels, image.grid)
        for suffix in ("jpg", "png"):
            ids.append(f"{suffix}{orientation}")
            tags.append(f'<img id="{ids[-1]}" src="{orientation}.{suffix}">')
    (tmp_path / "a.html").write_text("".join(tags))
    with browser() as of, page(of, Seen()) as opened:
        # pages from files may not read each other's pixels
        opened.route("http://pictures/*", lambda route: route.fulfill(
            path=tmp_path / route.request.url.rsplit("/", 1)[1]
        ))  # fmt: skip
        opened.goto("http://pictures/a.html")
        shown = [np.array(data).reshape(h, w) > 128 for h, w, data in opened.evaluate(_PIXELS, ids)]
    for picture_shown, labels_shown in zip(shown[::2], shown[1::2], strict=True):
        assert np.array_equal(picture_shown, labels_shown)
    assert [shape.shape for shape in shown[::2]] == [(20, 40)] * 4 + [(40, 20)] * 4
