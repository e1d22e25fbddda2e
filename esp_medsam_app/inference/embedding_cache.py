"""Image embeddings that are kept: who asks again for an image does not wait for the encoder.

The encoder is 97 % of the work. What it makes of an image is a few megabytes, and depends on the
image, on the modality's controller and on the precision, on nothing else.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
import torch
from torch import Tensor

from esp_medsam_app.data.image import MedicalImage
from esp_medsam_app.data.slices import SliceView

Embed = Callable[[Tensor], Tensor]
Decode = Callable[[Tensor, Tensor], Tensor]


class EmbeddingCache:
    """Embeddings of the images used last, up to a number of bytes. May be shared by threads.

    Whole images make room, those that were asked for longest ago first; an image never displaces
    its own tiles. Of a volume that does not fit the first tiles are kept: a cache that threw away
    what comes next would keep a volume for nothing.

    Args:
        limit: bytes of all embeddings together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._images: OrderedDict[Hashable, dict[int, Tensor]] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of all embeddings."""
        return self._held

    def get(self, image: Hashable, tile: int) -> Tensor | None:
        """The embedding `[1, C, E, E]` of a tile; none if it is not there."""
        with self._lock:
            tiles = self._images.get(image)
            if tiles is None:
                return None
            self._images.move_to_end(image)
            return tiles.get(tile)

    def put(self, image: Hashable, tile: int, embedding: Tensor) -> None:
        """Keep a copy of an embedding `[1, C, E, E]`, if there is room for it."""
        size = embedding.nbytes
        with self._lock:
            tiles = self._images.setdefault(image, {})
            self._images.move_to_end(image)
            if tile in tiles:
                return
            while self._held + size > self.limit and len(self._images) > 1:
                _, oldest = self._images.popitem(last=False)
                self._held -= sum(kept.nbytes for kept in oldest.values())
            if self._held + size <= self.limit:
                # a slice would hold the whole batch
                tiles[tile] = embedding.clone()
                self._held += size

    def give_back(self) -> None:
        """Forget everything, and hold half as much from now on: memory is needed elsewhere."""
        with self._lock:
            self._images.clear()
            self._held = 0
            self.limit //= 2


class RememberedPasses:
    """Passes over an image's tiles that embed those alone which are not known yet.

    Called with all tiles of an image in order, some at a time; a call that failed is repeated with
    the same first tile.

    Args:
        cache: of embeddings.
        image: names image, weights and precision.
        embed: tiles `[B, 3, S, S]` to `[B, C, E, E]`.
        decode: embeddings and their tiles to logits.
    """

    def __init__(
        self, cache: EmbeddingCache, image: Hashable, embed: Embed, decode: Decode
    ) -> None:
        self.cache = cache
        self.image = image
        self.embed = embed
        self.decode = decode
        self._done = 0

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of the next tiles."""
        indices = range(self._done, self._done + len(tiles))
        known = [self.cache.get(self.image, index) for index in indices]
        missing = [row for row, embedding in enumerate(known) if embedding is None]
        if missing:
            found = self.embed(tiles[missing])
            for embedding, row in zip(found.split(1), missing, strict=True):
                known[row] = embedding
                self.cache.put(self.image, indices[row], embedding)
        logits = self.decode(torch.cat([part for part in known if part is not None]), tiles)
        self._done += len(tiles)
        return logits


def fingerprint(image: MedicalImage) -> str:
    """Names an image by its voxels and the way they are cut into slices."""
    voxels, view = image.voxels, SliceView.of(image.grid)
    # NIfTI lies in memory with the first index running fastest
    order = "F" if voxels.flags.f_contiguous else "C"
    named = (voxels.dtype.str, voxels.shape, order, view.axes, view.flips)
    digest = hashlib.blake2b(repr(named).encode(), digest_size=16)
    rows = np.ascontiguousarray(voxels.T if order == "F" else voxels)
    digest.update(rows.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
