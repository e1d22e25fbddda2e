"""Orders of candidates: rules that must hold for any of them, and small cases by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_medsam_app.active_learning.strategies import STRATEGIES, Candidate

ALL = sorted(STRATEGIES)
VECTORS = st.tuples(*[st.integers(-4, 4)] * 2).map(lambda values: np.array(values, np.float32))


@st.composite
def problems(draw: st.DrawFn, known: bool = False) -> tuple[list[Candidate], list[np.ndarray]]:
    """Candidates, scored or not, and embeddings of annotated cases."""
    ids = draw(st.lists(st.text("abc", min_size=1, max_size=4), unique=True, max_size=9))
    candidates = []
    for id_ in ids:
        if known or draw(st.booleans()):
            uncertainty = draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
            candidates.append(Candidate(id_, uncertainty, draw(VECTORS)))
        else:
            candidates.append(Candidate(id_))
    return candidates, draw(st.lists(VECTORS, max_size=4))


def of(**embeddings: tuple[float, ...]) -> list[Candidate]:
    return [Candidate(id_, 0.5, np.array(vector)) for id_, vector in embeddings.items()]


@pytest.mark.parametrize("name", ALL)
@given(problem=problems(), seed=st.integers(0, 3), shuffle=st.randoms(use_true_random=False))
def test_every_candidate_once_whatever_their_order(name, problem, seed, shuffle) -> None:  # type: ignore[no-untyped-def]
    candidates, annotated = problem
    order = STRATEGIES[name](candidates, annotated, seed=seed)
    assert sorted(order) == sorted(candidate.id for candidate in candidates)
    shuffle.shuffle(candidates)
    shuffle.shuffle(annotated)
    assert STRATEGIES[name](candidates, annotated, seed=seed) == order


@pytest.mark.parametrize("name", ALL)
@given(problem=problems(known=True), count=st.integers(0, 9))
def test_the_first_few_alone_are_the_same(name, problem, count) -> None:  # type: ignore[no-untyped-def]
    candidates, annotated = problem
    whole = STRATEGIES[name](candidates, annotated)
    part = STRATEGIES[name](candidates, annotated, count=count)
    assert part[:count] == whole[:count]
    assert sorted(part) == sorted(whole)


def test_chance_depends_on_the_seed_and_not_on_who_else_is_there() -> None:
    candidates = [Candidate(str(number)) for number in range(50)]
    one, other = (STRATEGIES["random"](candidates, seed=seed) for seed in (0, 1))
    assert one != other
    fewer = [candidate for candidate in candidates if candidate.id not in one[:10]]
    assert STRATEGIES["random"](fewer, seed=0) == one[10:]


def test_first_is_by_name() -> None:
    assert STRATEGIES["first"]([Candidate("b", 1.0), Candidate("a", 0.0)]) == ["a", "b"]


def test_the_least_certain_first_and_ties_by_name() -> None:
    scores = {"d": 0.5, "a": 0.1, "c": 0.5, "b": 0.9}
    candidates = [Candidate(id_, score) for id_, score in scores.items()]
    assert STRATEGIES["uncertainty"](candidates) == ["b", "c", "d", "a"]


@pytest.mark.parametrize("name", ["uncertainty", "diversity", "hybrid"])
def test_unknown_ones_stand_in_the_middle(name: str) -> None:
    known = of(a=(0.0,), b=(1.0,), c=(2.0,), d=(3.0,))
    alone = STRATEGIES[name](known)
    together = STRATEGIES[name]([*known, Candidate("n"), Candidate("m")])
    assert together == [*alone[:2], "m", "n", *alone[2:]]
    assert STRATEGIES[name]([Candidate("n"), Candidate("m")]) == ["m", "n"]


def test_diversity_goes_where_nothing_was_annotated() -> None:
    candidates = of(a=(0.0, 0), b=(0.1, 0), c=(5.0, 0), d=(5.1, 0), e=(0, 9))
    assert STRATEGIES["diversity"](candidates, [np.array([0, 0])])[:3] == ["e", "d", "b"]
    assert STRATEGIES["diversity"](candidates, [np.array([0, 8.5])])[:2] == ["d", "a"]


def test_diversity_begins_with_the_most_typical() -> None:
    assert STRATEGIES["diversity"](of(a=(0.0,), b=(4.0,), c=(5.0,), d=(9.0,)))[0] == "b"


@given(problem=problems(known=True), count=st.integers(1, 3))
def test_diversity_covers_all_nearly_as_well_as_can_be(problem, count) -> None:  # type: ignore[no-untyped-def]
    """The bound of the greedy k-center: twice the best radius (Gonzalez 1985)."""
    candidates, annotated = problem
    if len(candidates) < count:
        return
    points = {candidate.id: candidate.embedding for candidate in candidates}

    def radius(chosen: tuple[str, ...]) -> float:
        centres = [*annotated, *(points[id_] for id_ in chosen)]
        return max(min(np.linalg.norm(p - c) for c in centres) for p in points.values())

    greedy = radius(tuple(STRATEGIES["diversity"](candidates, annotated)[:count]))
    best = min(radius(chosen) for chosen in combinations(points, count))
    assert greedy <= 2 * best + 1e-6


def test_hybrid_wants_both() -> None:
    candidates = [
        Candidate("odd_and_sure", 0.0, np.array([9.0])),
        Candidate("seen_and_unsure", 1.0, np.array([0.1])),
        Candidate("new_and_unsure", 0.9, np.array([8.0])),
        Candidate("seen_and_sure", 0.1, np.array([0.2])),
    ]
    assert STRATEGIES["hybrid"](candidates, [np.array([0.0])])[0] == "new_and_unsure"


def test_hybrid_does_not_choose_the_same_twice() -> None:
    twins = [Candidate(f"twin{n}", 0.9 - n / 1000, np.array([5.0])) for n in range(3)]
    others = [Candidate(f"other{n}", 0.8 - n / 100, np.array([-4.0 + n])) for n in range(6)]
    order = STRATEGIES["hybrid"]([*twins, *others], [np.array([0.0])])
    assert order[:2] == ["twin0", "other0"]
