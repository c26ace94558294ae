"""Guesses of what a plan says next, fed together with what is decided: a right guess spares its own model call.

In: where a plan stands, last week's plan, and what was planned for others. Out: tokens that may follow, in pieces of
one decision each. Nothing here can change a plan: the decoder takes a guessed token only where it is the best legal
one by the model's own scores (speculative decoding's greedy case, Leviathan et al. 2023; the draft is looked up in the
prompt, Saxena 2023).

Guessed are the next day, last week's dishes, dishes that were planned often or are among the few left, and servings.
A piece is fed while what it may spare outweighs what it may waste.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.contracts.plan import DAY_INDEX, WEEKDAYS, Plan
from planner.decoding.moves import Place, PlanMoves
from planner.decoding.trie import NUMBER, USUAL, CatalogueTrie, Pieces

# How often each guess is right, before the plan at hand has shown it; from 32 plans of an adapter of the demo dataset.
PRIORS = {
    "day": 0.85,  # last week's next day, else the day after
    "dish": 0.6,  # last week's dish of that day
    "known": 0.8,  # another dish of last week that the title's beginning leaves open
    "often": 0.5,  # what this decoder planned most often below the node
    "alike": 0.4,  # a beginning that another dish of this plan had
    "few": 0.35,  # one of few dishes left
    "rest": 0.9,  # a later branch of the same title
    "ending": 0.95,  # the line's end: servings as in the line before, or as last week
    "number": 0.9,  # of servings
}
BETWEEN_DISHES = {"day", "ending", "number"}
PRIOR_WEIGHT = 3.0  # guesses that the prior counts for, against those of the plan at hand
FEW_LEAVES = 8  # below a node with more leaves no title is guessed without a reason
MANY_LEAVES = 4096  # below a node with more, looking for what was chosen often would cost more than it spares
OFTEN = 0.3  # share of what was chosen below a node that makes one dish worth guessing


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens up to the next decision, the first of them guessed; `kind` says why."""

    kind: str
    tokens: Pieces


@dataclass(frozen=True)
class Leaves:
    """Per recipe, its leaf of the usual servings and its leaf that a number follows; -1 where there is none.

    `chosen` counts per leaf of the usual servings how often the dish was planned so far, whatever the servings.
    """

    usual: NDArray[np.int64]
    number: NDArray[np.int64]
    chosen: NDArray[np.int64]

    @classmethod
    def of(cls, trie: CatalogueTrie, num_recipes: int) -> Leaves:
        """Find them in a trie."""
        found = []
        for kind in (USUAL, NUMBER):
            leaves = np.flatnonzero(trie.servings == kind)
            leaf_of = np.full(num_recipes, -1, dtype=np.int64)
            leaf_of[trie.recipe[leaves]] = leaves
            found.append(leaf_of)
        return cls(found[0], found[1], np.zeros(trie.num_leaves, dtype=np.int64))

    def count(self, rows: Iterable[int]) -> None:
        """Take note of the dishes of a plan."""
        for row in rows:
            if self.usual[row] >= 0:
                self.chosen[self.usual[row]] += 1


@dataclass
class Guesser:
    """The guesses for one request; learns within its plan which kinds come true.

    Args:
        trie: the catalogue's trie.
        leaves: of that trie.
        row_of: catalogue row of each recipe id.
        previous: last week's plan, if there is one.
        usual: servings that a line without a number means.
    """

    trie: CatalogueTrie
    leaves: Leaves
    row_of: Mapping[str, int]
    previous: Plan | None
    usual: int
    _hits: dict[str, int] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        meals = self.previous.in_week_order().meals if self.previous else ()
        known = [(DAY_INDEX[m.day], self.row_of[m.recipe_id], m.servings) for m in meals if m.recipe_id in self.row_of]
        self._dish_of_day = {day: row for day, row, _ in known}
        self._servings_of = {row: servings for _, row, servings in known}
        self._habit = known[0][2] if known else self.usual

    def draft(self, moves: PlanMoves, call_tokens: float) -> list[Piece]:
        """What to feed behind the tokens that are certain.

        Args:
            moves: where the plan stands, at a decision.
            call_tokens: how many more tokens in a call cost as much as one more call, for this row's share of it.
        """
        pieces: list[Piece] = []
        chance = 1.0
        for piece in self._following(moves, moves.place()):
            chance *= self._chance(piece.kind)
            if chance * call_tokens <= (1 - chance) * len(piece.tokens):
                break
            pieces.append(piece)
        return pieces

    def learn(self, pieces: list[Piece], num_right: int) -> None:
        """Take note of how many tokens of a draft were right; what stands behind the first wrong one says nothing."""
        for piece in pieces:
            num_right -= len(piece.tokens)
            self._tries[piece.kind] = self._tries.get(piece.kind, 0) + 1
            if num_right < 0:
                return
            self._hits[piece.kind] = self._hits.get(piece.kind, 0) + 1

    def _chance(self, kind: str) -> float:
        hits, tries = self._hits.get(kind, 0), self._tries.get(kind, 0)
        return (PRIORS[kind] * PRIOR_WEIGHT + hits) / (PRIOR_WEIGHT + tries)

    def _following(self, moves: PlanMoves, place: Place) -> Iterator[Piece]:
        """Pieces of the lines to come, until there is nothing to go by."""
        day, begun, used = place.day, place.options, set[int]()
        if place.kind != "day":
            if place.kind == "number":
                row = yield from self._number(moves, place)
            else:
                row = yield from self._title(moves, place, used)
            if row is None:
                return
            used.add(row)
            begun = ()
        while (next_day := self._next_day(moves, day, begun)) is not None:
            yield Piece("day", self.trie.labels[next_day][place.pos if begun else 0 :])
            day, begun = next_day, ()
            row = yield from self._title(moves, Place("title", day, 0, self.trie.num_leaves), used)
            if row is None:
                return
            used.add(row)

    def _title(self, moves: PlanMoves, place: Place, used: set[int]) -> Generator[Piece, None, int | None]:
        """The rest of a title with its line's end; returns the dish, or None where there is nothing to go by."""
        guess = self._dish(moves, place, used)
        if guess is None:
            yield from self._alike(moves, place)
            return None
        kind, row = guess
        written = moves.plan.meals
        servings = written[-1].servings if written else self._habit
        counted = servings != self.usual and servings < len(self.trie.numbers) and self.leaves.number[row] >= 0
        leaf = int((self.leaves.number if counted else self.leaves.usual)[row])
        if not (place.low <= leaf < place.high and moves.affords(leaf, place.day)):
            return None
        yield from self._walk(kind, leaf, place)
        if counted:
            yield Piece("number", self.trie.numbers[servings])
        return row

    def _dish(self, moves: PlanMoves, place: Place, used: set[int]) -> tuple[str, int] | None:
        """Why, and which catalogue row: last week's of that day, another of it, one planned often, one of few."""
        known = (self._dish_of_day.get(place.day, -1), *self._servings_of)
        for index, row in enumerate(known):
            leaf = self.leaves.usual[row] if row >= 0 and row not in used else -1
            # At the root nothing has been said yet that would point at a dish of another day.
            if place.low <= leaf < place.high and moves.affords(leaf, place.day) and (index == 0 or place.depth):
                return ("dish" if index == 0 else "known"), row
        if place.high - place.low <= MANY_LEAVES:
            counts = np.where(
                moves.afforded(place.low, place.high, place.day), self.leaves.chosen[place.low : place.high], 0
            )
            best, total = int(counts.argmax()), int(counts.sum())
            row = int(self.trie.recipe[place.low + best])
            if total and counts[best] >= OFTEN * total and row not in used:
                return "often", row
        if place.high - place.low <= FEW_LEAVES:
            rows = self.trie.recipe[place.low : place.high].tolist()
            fitting = [row for row in rows if row not in used and moves.affords(int(self.leaves.usual[row]), place.day)]
            if fitting:
                return "few", fitting[0]
        return None

    def _walk(self, kind: str, leaf: int, place: Place) -> Iterator[Piece]:
        """A leaf's tokens from a node on, cut where the catalogue branches."""
        tokens = self.trie.tokens[leaf, : self.trie.lengths[leaf]].tolist()
        low, high, start = place.low, place.high, place.depth
        for depth in range(start, len(tokens)):
            following, starts = self.trie.children(low, high, depth)
            if len(following) > 1:
                if depth > start:
                    yield Piece(kind, tuple(tokens[start:depth]))
                    start, kind = depth, "rest"
                if self.trie.recipe[low] == self.trie.recipe[high - 1]:
                    kind = "ending"
                at = int(np.searchsorted(following, tokens[depth]))
                low, high = int(starts[at]), int(starts[at + 1]) if at + 1 < len(starts) else high
        yield Piece(kind, tuple(tokens[start:]))

    def _alike(self, moves: PlanMoves, place: Place) -> Iterator[Piece]:
        """How the titles of this plan went on before; a model that wrote one grilled dish likes another."""
        recent = list(dict.fromkeys(reversed(moves.tokens)))
        low, high, depth, tokens = place.low, place.high, place.depth, list[int]()
        while self.trie.recipe[low] != self.trie.recipe[high - 1]:
            following, starts = self.trie.children(low, high, depth)
            at = 0
            if len(following) > 1:
                if tokens:
                    yield Piece("alike", tuple(tokens))
                places = np.searchsorted(following, recent)
                known = [
                    int(i) for i, t in zip(places, recent, strict=True) if i < len(following) and following[i] == t
                ]
                if not known:
                    return
                at, tokens = known[0], []
            tokens.append(int(following[at]))
            low, high, depth = int(starts[at]), int(starts[at + 1]) if at + 1 < len(starts) else high, depth + 1
        if tokens and moves.afforded(low, high, place.day).any():
            yield Piece("alike", tuple(tokens))

    def _number(self, moves: PlanMoves, place: Place) -> Generator[Piece, None, int | None]:
        row = int(self.trie.recipe[place.low])
        written = moves.plan.meals
        habit = written[-1].servings if written else self._habit
        for servings in (habit, self._servings_of.get(row, 0), 2 * self.usual):
            if servings in place.options:
                yield Piece("number", self.trie.numbers[servings][place.pos :])
                return row
        return None

    def _next_day(self, moves: PlanMoves, day: int, begun: tuple[int, ...]) -> int | None:
        """Last week's next day, else the day after, as far as the label's tokens leave it open; None after the last."""
        days = sorted(d for d in begun if d < len(WEEKDAYS)) if begun else range(day + 1, len(WEEKDAYS))
        preferred = (*(d for d in days if d in self._dish_of_day), *days)
        return next((d for d in preferred if begun or moves.offers(d)), None)
