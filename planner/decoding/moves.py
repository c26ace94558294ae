"""Which tokens may follow in a plan's text: a pure walk over the catalogue trie, with the money that is left.

In: a trie, what a request allows, and the tokens chosen so far. Out: the legal next tokens. Whatever is chosen among
them, the walk ends with a plan that breaks no constraint: strictly ascending days, at least one meal, no dish twice,
a sum within the budget, and on each day a dish that is allowed there. No model is involved, so a test can drive it with
any scores.

Decisions are: the day (or the end, after a meal), the branches of the title, usual servings or a number, the number.
A position with one legal token is no decision (`run_forced` passes over it).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.contracts.catalogue import Catalogue
from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.decoding.constraints import Allowed
from planner.decoding.prices import Prices
from planner.decoding.trie import NEVER, NUMBER, USUAL, CatalogueTrie, Pieces, servings_bound


@dataclass(slots=True)
class _Option:
    """One of a few token sequences that may come next: a day (index), the end (7) or a number of servings."""

    pieces: Pieces
    value: int


_END = len(WEEKDAYS)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a plan stands. `kind` is `day`, `title` or `number`; `day` the index of the last day that was written.

    In a title, `low` to `high` are the leaves that are left and `depth` the tokens of them written; before a number,
    `low` is the leaf. `options` are the days (7 is the end) or numbers left, `pos` the tokens of them written.
    """

    kind: str
    day: int
    low: int = 0
    high: int = 0
    depth: int = 0
    options: tuple[int, ...] = ()
    pos: int = 0


class PlanMoves:
    """The state of one plan while it is written.

    Args:
        trie: the catalogue's trie.
        catalogue: the same catalogue, for the ids.
        cost_cents: per recipe, negative when unknown.
        allowed: the recipes and the budget of the request.
        usual: servings that a line without a number means.
        repeats: whether a dish may stand twice in a plan.
    """

    def __init__(
        self,
        trie: CatalogueTrie,
        catalogue: Catalogue,
        cost_cents: NDArray[np.int64],
        allowed: Allowed,
        usual: int,
        *,
        repeats: bool = False,
    ) -> None:
        self.tokens: list[int] = []
        self.finished = False
        self._trie, self._catalogue, self._repeats, self._usual = trie, catalogue, repeats, usual
        self._cost = cost_cents
        self._left = NEVER - 1 if allowed.budget is None else min(allowed.budget, NEVER - 1)
        self._bound = servings_bound(usual)
        least, masks = trie.prices(cost_cents, usual), allowed.by_day or (allowed.mask,) * len(WEEKDAYS)
        distinct = {id(mask): mask for mask in masks}
        # Days of one limit share their prices; without limits of single days all do.
        self._kinds = [Prices(trie, np.where(mask[trie.recipe], least, NEVER)) for mask in distinct.values()]
        self._kind_of = [list(distinct).index(id(mask)) for mask in masks]
        self._meals: list[Meal] = []
        self._day = -1
        self._low = self._high = self._depth = 0
        self._options: list[_Option] = []
        self._pos = 0
        self._offer_days()

    @property
    def plan(self) -> Plan:
        """The meals written so far."""
        return Plan(tuple(self._meals))

    def copy(self) -> PlanMoves:
        """The same state once more, to go on another way."""
        other = copy.copy(self)
        other.tokens, other._meals = list(self.tokens), list(self._meals)
        other._kinds = [prices.copy() for prices in self._kinds]
        return other

    def place(self) -> Place:
        """Where the plan stands."""
        kind = ("number" if self._high else "day") if self._options else "title"
        options = tuple(option.value for option in self._options)
        return Place(kind, self._day, self._low, self._high, self._depth, options, self._pos if options else 0)

    def leaves_open(self) -> bool:
        """Whether a title is being written that may still become one dish or another."""
        return not (self._options or self.finished or self.is_dish(self._low, self._high))

    def is_dish(self, low: int, high: int) -> bool:
        """Whether the leaves from `low` to `high` that are afforded are all of one dish."""
        return self._prices(self._day).are_one_dish(low, high, self._left)

    def offers(self, day: int) -> bool:
        """Whether some dish may stand on a day: allowed there, not eaten yet, within what is left of the budget."""
        return self._prices(day).least() <= self._left

    def affords(self, leaf: int, day: int) -> bool:
        """Whether a leaf of the trie may stand on a day."""
        return bool(self._prices(day).of_leaf[leaf] <= self._left)

    def afforded(self, low: int, high: int, day: int) -> NDArray[np.bool_]:
        """The same of a range of leaves."""
        return self._prices(day).of_leaf[low:high] <= self._left

    def legal_tokens(self) -> NDArray[np.int64]:
        """Every token that may come next, ascending; empty once the plan is finished."""
        if self.finished:
            return np.empty(0, dtype=np.int64)
        if self._options:
            return np.array(sorted({option.pieces[self._pos] for option in self._options}), dtype=np.int64)
        if self._high - self._low == 1:
            return self._trie.tokens[self._low : self._high, self._depth].astype(np.int64)
        return self.legal_children(self._low, self._high, self._depth)[0]

    def shared(self, low: int, high: int, depth: int) -> list[int]:
        """The tokens that all leaves of a node go on with."""
        return self._trie.shared(low, high, depth)

    def legal_children(
        self, low: int, high: int, depth: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The legal tokens behind a node of several leaves, ascending, with the leaves that each leads to: from, to.

        They are those of the day that was written last, and in front of the first day Monday's.
        """
        tokens, starts, cheapest = self._prices(self._day).branches(low, high, depth)
        legal = cheapest <= self._left
        return tokens[legal], starts[legal], np.append(starts[1:], high)[legal]

    def take(self, token: int) -> None:
        """Append one legal token."""
        self.tokens.append(token)
        if self._options:
            self._options = [option for option in self._options if option.pieces[self._pos] == token]
            self._pos += 1
            assert self._options, "an illegal token was taken"
            if self._pos == len(self._options[0].pieces):
                chosen, self._options = self._options[0].value, []
                self._decided(chosen)
            return
        self._narrow(token)
        self._depth += 1
        if self._high - self._low == 1 and self._depth == self._trie.lengths[self._low]:
            self._reach_leaf(self._low)

    def run_forced(self) -> NDArray[np.int64]:
        """Append tokens while only one is legal; the legal tokens of the decision then reached, empty at the end."""
        while not self.finished:
            if not self._options:
                self._run_along()
            legal = self.legal_tokens()
            if len(legal) != 1:
                assert len(legal) or self.finished, "a dead end: the look-ahead is wrong"
                return legal
            self.take(int(legal[0]))
        return np.empty(0, dtype=np.int64)

    def _run_along(self) -> None:
        """Append what all leaves of the title that is being written go on with."""
        tokens = self._trie.shared(self._low, self._high, self._depth)
        self.tokens += tokens
        self._depth += len(tokens)
        if self._high - self._low == 1:
            self._reach_leaf(self._low)

    def _offer_days(self) -> None:
        self._options = [_Option((self._trie.end,), _END)] if self._meals else []
        if self._day + 1 < _END:
            offered = [prices.least() <= self._left for prices in self._kinds]
            days = (day for day in range(self._day + 1, _END) if offered[self._kind_of[day]])
            self._options += [_Option(self._trie.labels[day], day) for day in days]
        self._pos = 0
        self.finished = not self._options  # nothing is allowed at all; `infeasible_reason` has said so before

    def _decided(self, value: int) -> None:
        if self._high:  # a leaf is open: the value is its servings
            self._eat(self._low, value)
        elif value == _END:
            self.finished = True
        else:
            self._day = value
            self._low, self._high, self._depth = 0, self._trie.num_leaves, 0

    def _narrow(self, token: int) -> None:
        if self._high - self._low == 1:
            return
        tokens, starts = self._trie.children(self._low, self._high, self._depth)
        at = int(np.searchsorted(tokens, token))
        assert at < len(tokens) and tokens[at] == token, "an illegal token was taken"
        self._low, self._high = int(starts[at]), int(starts[at + 1]) if at + 1 < len(starts) else self._high

    def _reach_leaf(self, leaf: int) -> None:
        kind = int(self._trie.servings[leaf])
        if kind != NUMBER:
            self._eat(leaf, self._usual if kind == USUAL else kind)
            return
        price = self._cost_of(int(self._trie.recipe[leaf]))
        most = self._bound if price == 0 else min(self._bound, self._left // price)
        numbers = (n for n in range(1, most + 1) if n != self._usual)
        self._options, self._pos = [_Option(self._trie.numbers[n], n) for n in numbers], 0

    def _eat(self, leaf: int, servings: int) -> None:
        row = int(self._trie.recipe[leaf])
        self._meals.append(Meal(WEEKDAYS[self._day], self._catalogue.recipes[row].id, servings))
        self._left -= self._cost_of(row) * servings
        if not self._repeats:
            leaves = self._trie.leaves_of(row)
            for prices in self._kinds:
                prices.forbid(leaves)
        self._low = self._high = 0
        self._offer_days()

    def _prices(self, day: int) -> Prices:
        return self._kinds[self._kind_of[max(day, 0)]]

    def _cost_of(self, row: int) -> int:
        return max(0, int(self._cost[row]))  # an unknown cost, negative, is allowed only without a budget
