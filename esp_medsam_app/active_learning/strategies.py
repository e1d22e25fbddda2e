"""Orders in which to annotate: pure functions from what is known of the candidates to their ids.

All of them give the best first, do not depend on the order of the candidates, and settle ties by
the smaller id.

A candidate that has not been assessed yet is unknown, and unknown is taken for average: such
candidates stand, by id, in the middle of the order, behind the better half of those that are
known. So the first scores already count, and an image is not shown because nobody looked at it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

# Annotated cases whose distances to all candidates are in memory together.
_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Candidate:
    """A case that has no annotation yet.

    Attributes:
        id: of the image.
        uncertainty: the higher, the less sure the network is; none if unknown.
        embedding: `[F]`, comparable to those of the annotated cases; none if unknown.
    """

    id: str
    uncertainty: float | None = None
    embedding: NDArray[np.floating] | None = None


class Order(Protocol):
    """A strategy.

    Args:
        candidates: without annotation; each id once.
        annotated: embeddings of the annotated cases, as far as known.
        seed: of chance; same seed, same order.
        count: how many of the first are needed. Strategies that choose each case in view of those
            before it stop there, and put the rest behind in an order of no great care.
    """

    def __call__(
        self,
        candidates: Sequence[Candidate],
        annotated: Sequence[NDArray[np.floating]] = (),
        *,
        seed: int = 0,
        count: int | None = None,
    ) -> list[str]: ...


def by_chance(
    candidates: Sequence[Candidate],
    annotated: Sequence[NDArray[np.floating]] = (),
    *,
    seed: int = 0,
    count: int | None = None,
) -> list[str]:
    """Any order; those that remain when some are annotated keep theirs."""
    return sorted(
        _ids(candidates), key=lambda id_: hashlib.sha256(f"{seed} {id_}".encode()).digest()
    )


def by_name(
    candidates: Sequence[Candidate],
    annotated: Sequence[NDArray[np.floating]] = (),
    *,
    seed: int = 0,
    count: int | None = None,
) -> list[str]:
    """By id."""
    return sorted(_ids(candidates))


def by_uncertainty(
    candidates: Sequence[Candidate],
    annotated: Sequence[NDArray[np.floating]] = (),
    *,
    seed: int = 0,
    count: int | None = None,
) -> list[str]:
    """The least certain first (uncertainty sampling, Lewis and Gale 1994)."""
    scored = [(-c.uncertainty, c.id) for c in candidates if c.uncertainty is not None]
    known = [id_ for _, id_ in sorted(scored)]
    return _with_unknown(known, candidates)


def by_diversity(
    candidates: Sequence[Candidate],
    annotated: Sequence[NDArray[np.floating]] = (),
    *,
    seed: int = 0,
    count: int | None = None,
) -> list[str]:
    """Each time the one that is farthest from all that are annotated or chosen before it.

    The greedy k-center core-set of Sener and Savarese (2018): no image lies farther from a chosen
    one than twice what the best choice of as many would allow. Where nothing is annotated, the
    first one is the most typical, nearest to the mean of all.
    """
    known = sorted((c for c in candidates if c.embedding is not None), key=lambda c: c.id)

    def farthest(far: NDArray[np.float64], left: NDArray[np.intp]) -> int:
        return int(np.argmax(far))

    return _with_unknown(_greedy(known, annotated, count, farthest), candidates)


def by_both(
    candidates: Sequence[Candidate],
    annotated: Sequence[NDArray[np.floating]] = (),
    *,
    seed: int = 0,
    count: int | None = None,
) -> list[str]:
    """Uncertain and unlike what is annotated: each time the best sum of two ranks.

    The ranks, among the candidates left, are those of uncertainty and of the distance as in
    `by_diversity`. Ranks, because the two have no common unit. Uncertainty alone chooses many
    cases of one kind; distance alone chooses odd ones that the network masters.
    """
    known = sorted(
        (c for c in candidates if c.embedding is not None and c.uncertainty is not None),
        key=lambda c: c.id,
    )
    uncertainty = np.array([c.uncertainty for c in known], np.float64)

    def best(far: NDArray[np.float64], left: NDArray[np.intp]) -> int:
        ranks = rankdata(-far) + rankdata(-uncertainty[left])
        return int(np.argmin(ranks))

    return _with_unknown(_greedy(known, annotated, count, best), candidates)


STRATEGIES: Mapping[str, Order] = MappingProxyType(
    {
        "random": by_chance,
        "first": by_name,
        "uncertainty": by_uncertainty,
        "diversity": by_diversity,
        "hybrid": by_both,
    }
)

# From the distances of those left, and their indices, to the place of the next among those left.
_Choose = Callable[[NDArray[np.float64], NDArray[np.intp]], int]


def _greedy(
    known: Sequence[Candidate],
    annotated: Sequence[NDArray[np.floating]],
    count: int | None,
    choose: _Choose,
) -> list[str]:
    """Ids of candidates with embeddings; those beyond `count` by falling distance."""
    if not known:
        return []
    points = np.stack([c.embedding for c in known if c.embedding is not None]).astype(np.float64)
    left = np.arange(len(known))
    if len(annotated):
        far = _nearest(points, np.stack(list(annotated)).astype(np.float64))
    else:
        # no distance yet: the nearer to the mean, the better
        far = -_distance(points, points.mean(axis=0))
    chosen: list[int] = []
    while len(left) and (count is None or len(chosen) < count):
        place = choose(far, left)
        step = _distance(points[left], points[left[place]])
        far = np.minimum(far, step) if chosen or len(annotated) else step
        chosen.append(int(left[place]))
        left, far = np.delete(left, place), np.delete(far, place)
    chosen += left[np.argsort(-far, kind="stable")].tolist()
    return [known[index].id for index in chosen]


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each point to the nearest of the others."""
    nearest = np.full(len(points), np.inf)
    for start in range(0, len(others), _AT_ONCE):
        far = cdist(points, others[start : start + _AT_ONCE])
        nearest = np.minimum(nearest, far.min(axis=1))
    return nearest


def _distance(points: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cdist(points, other[np.newaxis])[:, 0])


def _with_unknown(known: list[str], candidates: Sequence[Candidate]) -> list[str]:
    """Put those that are not in the order of the known into its middle."""
    unknown = sorted(set(_ids(candidates)) - set(known))
    half = (len(known) + 1) // 2
    return [*known[:half], *unknown, *known[half:]]


def _ids(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.id for candidate in candidates]
