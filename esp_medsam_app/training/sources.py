"""Where batches come from: fresh views, or features that were computed once and lie on disk.

Every source answers one question: batch `b` of a run. Which views are in it is a function of the
seed and `b` alone, so that a run that was stopped goes on with the very batches it would have had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from esp_medsam_app.training.sizes import SizeSchedule
from esp_medsam_app.training.views import Views

ENCODE_BATCH = 4
_CPU = torch.device("cpu")

Count = Callable[[int, int], None]


class Batch(NamedTuple):
    """Views of one modality.

    Attributes:
        modality: its name.
        inputs: images `[B, 3, S, S]`, or the features that stand for them.
        labels: uint8 `[B, S, S]`.
        number: of the batch in its run.
    """

    modality: str
    inputs: Tensor
    labels: Tensor
    number: int = 0


class BatchSource(Protocol):
    """Batches by number."""

    def batches(self, numbers: Sequence[int]) -> Iterable[Batch]:
        """The batches of these numbers, in this order."""
        ...


@dataclass(frozen=True)
class Turns:
    """Which views are in a batch: modalities take turns, and each goes through all of its views.

    Attributes:
        modalities: names.
        batch: views a batch.
        views: of each modality, after which they come again in another order; none: endless.
        seed: of that order.
        sizes: sides of the views, pixels; none: the views' own.
    """

    modalities: tuple[str, ...]
    batch: int
    views: int | None
    seed: int
    sizes: SizeSchedule | None = None

    def size(self, number: int) -> int | None:
        """Side of the views of batch `number`, pixels; none: the views' own."""
        return None if self.sizes is None else self.sizes.size(number)

    def modality(self, number: int) -> str:
        """Of batch `number`."""
        return self.modalities[number % len(self.modalities)]

    def indices(self, number: int) -> list[int]:
        """Views of batch `number`."""
        first = number // len(self.modalities) * self.batch
        places = range(first, first + self.batch)
        if self.views is None:
            return list(places)
        return [self._shuffled(*divmod(place, self.views)) for place in places]

    def _shuffled(self, turn: int, place: int) -> int:
        assert self.views is not None
        generator = torch.Generator().manual_seed(self.seed + 7919 * turn)
        return int(torch.randperm(self.views, generator=generator)[place])


class FreshViews:
    """Views made as they are needed, by worker processes where there are any.

    Args:
        views: of each modality.
        turns: which views are in a batch, and how large.
        workers: processes that cut views.
        device: where a batch gets its appearance: a GPU does in one go what would keep many
            processes busy.
        pinned: hand batches over in pinned memory, by a thread: not while a GPU records, as that
            thread's calls would end up in the recording.
    """

    def __init__(
        self,
        views: Mapping[str, Views],
        turns: Turns,
        workers: int,
        device: torch.device = _CPU,
        *,
        pinned: bool = True,
    ) -> None:
        self.views = views
        self.turns = turns
        self.workers = workers
        self.device = device
        self.pinned = pinned

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """The batches of these numbers, in this order."""
        on_cpu = self.device.type == "cpu"
        loader = DataLoader(
            _Numbered(self.views, self.turns, numbers, finished=on_cpu),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pinned and torch.cuda.is_available(),
            prefetch_factor=4 if self.workers else None,
            # its own numbers: the global ones are not touched
            generator=torch.Generator(),
        )
        for number, (images, labels) in zip(numbers, loader, strict=True):
            name = self.turns.modality(number)
            if not on_cpu:
                images = images.to(self.device, non_blocking=True)
                labels = labels.to(self.device, non_blocking=True)
                images, labels = _appearing(self.views[name], images, labels, number)
            yield Batch(name, images, labels, number)


def _appearing(views: Views, images: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """A batch with its appearance, which depends on the seed and its number alone."""
    return views.appearance(images, labels, views.seed + 7919 * number)


class _Numbered(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches as items, so that a worker makes a batch; with their appearance if finished."""

    def __init__(
        self, views: Mapping[str, Views], turns: Turns, numbers: Sequence[int], *, finished: bool
    ) -> None:
        self.views = views
        self.turns = turns
        self.numbers = numbers
        self.finished = finished

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        number = self.numbers[item]
        views = self.views[self.turns.modality(number)]
        size = self.turns.size(number) or views.tile
        cut = [views.cut(index, size) for index in self.turns.indices(number)]
        images, labels = (torch.stack(parts) for parts in zip(*cut, strict=True))
        return _appearing(views, images, labels, number) if self.finished else (images, labels)


class CachedFeatures:
    """Features on disk, memory-mapped; each modality's with its label maps."""

    def __init__(self, features: Mapping[str, tuple[Tensor, Tensor]], turns: Turns) -> None:
        self.features = features
        self.turns = turns

    def batches(self, numbers: Sequence[int]) -> Iterator[Batch]:
        """The batches of these numbers, in this order."""
        for number in numbers:
            name = self.turns.modality(number)
            inputs, labels = self.features[name]
            chosen = torch.tensor(self.turns.indices(number))
            yield Batch(name, inputs[chosen], labels[chosen], number)


def compute_once(
    path: Path,
    count: int,
    items: Callable[[int], tuple[Tensor, Tensor]],
    compute: Callable[[Tensor], Tensor],
    report: Count = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """Results and label maps of `count` inputs, in files of a folder, memory-mapped.

    What an earlier call wrote is kept; one that was stopped goes on.

    Args:
        path: the folder.
        count: how many.
        items: input and label map of a number.
        compute: inputs `[B, ...]` to results `[B, ...]`, which are kept in bfloat16.
        report: called with results done and in all.

    Returns:
        Results bfloat16 `[count, ...]` and label maps uint8 `[count, S, S]`.
    """
    path.mkdir(parents=True, exist_ok=True)
    mark = path / "done"
    done = int(mark.read_text(encoding="utf-8")) if mark.exists() else 0
    kept = None
    while done < count:
        numbers = range(done, min(done + ENCODE_BATCH, count))
        inputs, labels = (torch.stack(part) for part in zip(*map(items, numbers), strict=True))
        results = compute(inputs).to("cpu", torch.bfloat16)
        if kept is None:
            kept = [_mapped(path, name, count, like) for name, like in _named(results, labels)]
        for whole, part in zip(kept, (results, labels), strict=True):
            whole[done : numbers.stop] = part
        done = numbers.stop
        mark.write_text(str(done), encoding="utf-8")
        report(done, count)
    return read_computed(path)


def read_computed(path: Path) -> tuple[Tensor, Tensor]:
    """What `compute_once` wrote into a folder, all of it."""
    count = int((path / "done").read_text(encoding="utf-8"))
    features, truth = (_mapped(path, name, count, None) for name in ("features", "labels"))
    return features, truth


def _named(features: Tensor, labels: Tensor) -> list[tuple[str, Tensor]]:
    return [("features", features), ("labels", labels)]


def _mapped(path: Path, name: str, count: int, like: Tensor | None) -> Tensor:
    """`[count, ...]` on disk, of the shape and type of `like`'s items, or as it is."""
    description = path / f"{name}.json"
    if like is not None:
        shape = [count, *like.shape[1:]]
        description.write_text(json.dumps(shape), encoding="utf-8")
    else:
        shape = json.loads(description.read_text(encoding="utf-8"))
    dtype = {"features": torch.bfloat16, "labels": torch.uint8}[name]
    size = math.prod(shape)
    mapped = torch.from_file(str(path / f"{name}.bin"), shared=True, size=size, dtype=dtype)
    return mapped.view(shape)
