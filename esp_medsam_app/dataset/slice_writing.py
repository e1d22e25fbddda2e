"""Writing slice caches: every case is decoded once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView
from esp_medsam_app.data.whole_files import written_whole
from esp_medsam_app.errors import InputError
from esp_medsam_app.evaluation.pairs import CasePair, read_pair
from esp_medsam_app.inference.preprocessing import IntensityScale, Tiling
from esp_medsam_app.inference.slicewise import naming_errors
from esp_medsam_app.modalities import Modality
from esp_medsam_app.training.datasets import site_of
from esp_medsam_app.training.slice_cache import INDEX, PIXELS, CachedSlice, SliceCache, index_of
from esp_medsam_app.training.surroundings import DEFAULT_LIMIT, Surroundings

# Caches of another layout are made anew.
_LAYOUT = 2

Report = Callable[[int, int], None]


def prepare_caches(
    data: Mapping[str, Sequence[CasePair]],
    modalities: Sequence[Modality],
    *,
    tile: int,
    place: Surroundings,
) -> dict[str, SliceCache]:
    """The slices of each modality, on disk; the first process writes them for all.

    Args:
        data: cases of each modality, by name.
        modalities: what to prepare.
        tile: largest side of the network's input that is trained, pixels.
        place: folder and processes.

    Raises:
        InputError: a case that cannot be used.
    """
    caches = {}
    for modality in modalities:
        for turn in (place.processes.first, not place.processes.first):
            if turn:
                caches[modality.name] = prepare_slices(
                    place.work / "slices" / modality.name,
                    data[modality.name],
                    modality,
                    tile=tile,
                    limit_bytes=place.slice_bytes,
                    report=place.counting(f"slices {modality.name}"),
                )
            place.processes.wait()
    return caches


def prepare_slices(
    path: Path,
    pairs: Sequence[CasePair],
    modality: Modality,
    *,
    tile: int,
    limit_bytes: int = DEFAULT_LIMIT,
    report: Report = lambda done, total: None,
) -> SliceCache:
    """The cache in folder `path`; it is made if it is not there or was made from other cases.

    Slices are kept at the size that a network of this input works on, where that is smaller than
    their own. Cases of one grey value and no label are left out.

    Args:
        path: a folder of its own.
        pairs: images with label maps.
        modality: its labels, intensities and tiles.
        tile: largest side of the network's input, pixels.
        limit_bytes: of the file. Each case has an equal share; of a volume that needs more,
            slices at even distances are kept, one at least.
        report: called with cases done and cases in all.

    Raises:
        InputError: a case that cannot be used.
    """
    origin = _origin(pairs, modality, tile, limit_bytes)
    try:
        known = json.loads((path / INDEX).read_text(encoding="utf-8")).get("origin")
    except (OSError, ValueError):
        known = None
    if known != origin:
        path.mkdir(parents=True, exist_ok=True)
        share = limit_bytes // len(pairs)
        slices: list[CachedSlice] = []
        kept: list[CasePair] = []
        with written_whole(path / PIXELS) as partial, partial.open("wb") as file:
            for number, pair in enumerate(pairs):
                image, reference = read_pair(pair, modality)
                if not _is_blank(image, reference):
                    with naming_errors(image):
                        slices += _write_case(
                            file, len(kept), image, reference, modality, tile, share
                        )
                    kept.append(pair)
                report(number + 1, len(pairs))
        if not kept:
            raise InputError("every image has one grey value throughout", path=pairs[0].image)
        names = [pair.name for pair in kept]
        sites = [site_of(pair.image) for pair in kept]
        with written_whole(path / INDEX) as partial:
            partial.write_text(json.dumps(index_of(slices, names, sites, origin)), encoding="utf-8")
    return SliceCache(path)


def _is_blank(image: MedicalImage, reference: MedicalImage) -> bool:
    """Whether image and label map are empty, as slices beyond the end of a scan are.

    Such a case teaches nothing: inference refuses images of one grey value.
    """
    voxels = image.voxels
    return not reference.voxels.any() and bool(voxels.min() == voxels.max())


def _write_case(
    file: BinaryIO,
    number: int,
    image: MedicalImage,
    reference: MedicalImage,
    modality: Modality,
    tile: int,
    share: int,
) -> list[CachedSlice]:
    view = SliceView.of(image.grid)
    slices = view.slices(image.voxels)
    truth = view.slices(reference.voxels)
    scale = IntensityScale.of(image.voxels, modality.intensity)
    count, height, width = slices.shape[:3]
    tiling = Tiling(height, width, tile, modality.tiles)
    shrink = tiling.canvas[0] < height
    pixels = tiling.canvas[0] * tiling.canvas[1] if shrink else height * width
    channels = 3 if slices.ndim == 4 else 1
    fitting = max(1, min(count, share // ((channels + 1) * pixels)))
    written = []
    for index in np.linspace(0, count - 1, fitting).round().astype(int):
        canvas = scale.apply(slices[index : index + 1])[:, :channels]
        labels = torch.from_numpy(np.ascontiguousarray(truth[index : index + 1]))
        if shrink:
            canvas, labels = tiling.scale(canvas), tiling.scale_labels(labels)
        offset = file.tell()
        file.write((canvas[0] * 255).round().to(torch.uint8).numpy().tobytes())
        file.write(labels[0].to(torch.uint8).numpy().tobytes())
        shape = (int(labels.shape[-2]), int(labels.shape[-1]))
        labelled = bool(labels.any())
        written.append(CachedSlice(number, channels, *shape, offset, labelled, height, width))
    return written


def _origin(pairs: Sequence[CasePair], modality: Modality, tile: int, limit_bytes: int) -> str:
    """What a cache is made from, in one word: files with size and time, and the rules."""
    files = [
        [str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns]
        for pair in pairs
        for path in (pair.image, pair.label)
    ]
    rules = modality.model_dump(mode="json", include={"labels", "intensity", "tiles"})
    text = json.dumps([_LAYOUT, files, rules, tile, limit_bytes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
