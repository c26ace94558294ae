"""The likeliest beginnings of one request's plan: one, or a beam of several that are extended dish by dish.

In: a request's rows, each finished or with the likeliest next dishes found. Out: the rows that go on.

A beginning is as good as the mean log probability of its dishes, so that plans of different lengths compare. Whatever
stands between two dishes (servings, days, the end) each row decides by itself. A finished plan keeps its place among
the others as long as its mean does; when all are finished, the first is the plan. A beam of one is the likeliest dish
at each place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.decoding.ahead import Ahead
from planner.decoding.guess import Guesser
from planner.decoding.likely import Opinions
from planner.decoding.moves import PlanMoves
from planner.decoding.packed import RowCache
from planner.decoding.sampling import Sampler
from planner.decoding.search import Dish, DishSearch
from planner.decoding.trie import Pieces


@dataclass(slots=True)
class Row:
    """A beginning with its cache; `legal` are the tokens to choose from, the cache holds `num_fed` certain ones
    and what is `ahead` of them.
    """

    moves: PlanMoves
    legal: NDArray[np.int64]
    cache: RowCache | None = None
    num_fed: int = 0
    ahead: Ahead = field(default_factory=Ahead)
    search: DishSearch | None = None
    going_on: float = 1.0  # probability that the plan is as long as it is by now
    score: float = 0.0  # log probability of its dishes

    @property
    def is_open(self) -> bool:
        """Whether it needs the model; else it is finished, or waits for the other rows of its beam."""
        return len(self.legal) > 0 and not (self.search and self.search.is_done)

    def held_cache(self) -> RowCache:
        """The cache of a row that has begun and not finished."""
        assert self.cache is not None
        return self.cache

    def take(self, dish: Dish) -> None:
        """Go on with a dish that the search has found."""
        for token in dish.tokens:
            self.moves.take(token)
        self.legal = self.moves.run_forced()
        self.score += dish.score
        self.search = None


@dataclass(slots=True)
class Beam:
    """One request while it is decoded; the best row stands first. Counts are of all rows together."""

    index: int
    prompt: list[int]
    rows: list[Row]
    guesser: Guesser | None
    sampler: Sampler | None
    opinions: Opinions = field(default_factory=Opinions)
    num_calls: int = 0
    num_decisions: int = 0
    num_rejected: int = 0

    @property
    def is_open(self) -> bool:
        """Whether some row needs the model."""
        return any(row.is_open for row in self.rows)

    def unfed(self, row: Row) -> Pieces:
        """What is written and not yet certain in a row's cache."""
        return (*self.prompt[row.num_fed :], *row.moves.tokens[max(0, row.num_fed - len(self.prompt)) :])

    def narrow(self, width: int, new_cache: Callable[[int], RowCache]) -> None:
        """Extend every row by the dishes found for it, and keep the best; ties go to the row and dish found first.

        Args:
            width: rows that go on.
            new_cache: makes the cache of a row that goes on in several ways.
        """
        found: list[tuple[float, Row, Dish | None]] = []
        for row in self.rows:
            num_dishes = len(row.moves.plan.meals)
            if row.search is None:
                found.append((row.score / num_dishes, row, None))
            else:
                found += [((row.score + d.score) / (num_dishes + 1), row, d) for d in row.search.found]
        kept = sorted(found, key=lambda each: -each[0])[:width]
        left = Counter(id(row) for _, row, _ in kept)
        self.rows = []
        for _, row, dish in kept:
            left[id(row)] -= 1
            own = self._fork(row, new_cache) if left[id(row)] else row  # the last one takes the row over
            if dish is not None:
                own.take(dish)
                self.num_decisions += 1
            self.rows.append(own)

    def _fork(self, row: Row, new_cache: Callable[[int], RowCache]) -> Row:
        cache = new_cache(len(self.prompt))
        cache.copy_prefix(row.held_cache(), row.num_fed)
        return Row(row.moves.copy(), row.legal, cache, row.num_fed, going_on=row.going_on, score=row.score)
