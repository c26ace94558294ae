"""Which dish comes next, as a whole: a best-first search over the titles that are still legal.

In: where a plan stands, and the model's scores as the search asks for them. Out: the most likely dish, or dishes.

Greedy token by token, a family of titles that begin alike (`Grilled …`) wins over one dish that is likelier than each
of them. Here the probability of a dish is the product of its tokens' probabilities among the legal ones, and the dish
with the highest one is found, exactly: a beginning can never be less likely than what it begins, so no title behind a
beginning that is less likely than a known dish needs to be looked at. Going on, the search finds the second, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

from planner.decoding.likely import Node, Opinions
from planner.decoding.moves import PlanMoves
from planner.decoding.packed import PackedModel
from planner.decoding.trie import Pieces

WIDTH = 8  # beginnings that are looked behind in one model call


@dataclass(frozen=True, slots=True)
class Dish:
    """A dish by the tokens that name it among those left, and its log probability."""

    tokens: Pieces
    score: float


class DishSearch:
    """The search for one dish of one plan; `found` are the likeliest, best first.

    Args:
        moves: the plan so far, in front of a title or within one.
        packed: scores tokens.
        opinions: of the request; learns what the model thinks of tokens.
        count: how many dishes to find; fewer where fewer are left.
    """

    def __init__(self, moves: PlanMoves, packed: PackedModel, opinions: Opinions, *, count: int = 1) -> None:
        self.found: list[Dish] = []
        self._moves, self._packed, self._opinions, self._count = moves, packed, opinions, count
        place = moves.place()
        self._heap: list[tuple[float, int, Node]] = []
        self._num_seen = 0
        self._waiting = [Node(place.low, place.high, place.depth, (), 0.0)]

    @property
    def branches(self) -> list[Pieces]:
        """The beginnings whose states are needed, as tokens behind the plan so far; empty once it is done."""
        return [node.tokens for node in self._waiting]

    def likely(self, most: int) -> list[Pieces]:
        """Beginnings behind `branches` that are likely to be asked about next, as guesses."""
        return self._opinions.likely(self._moves, self._waiting, most)

    @property
    def is_done(self) -> bool:
        """Whether all that was asked for is found."""
        return not self._waiting

    def go_on(self, state_behind: Callable[[Pieces], Tensor | None]) -> None:
        """Search as far as states are known: the model's last hidden state behind a beginning, or None.

        Those of all `branches` are.
        """
        for node in self._waiting:
            state = state_behind(node.tokens)
            assert state is not None
            self._look_behind(node, state)
        self._advance(state_behind)

    def _look_behind(self, node: Node, state: Tensor) -> None:
        tokens, lows, highs = self._moves.legal_children(node.low, node.high, node.depth)
        scores = self._packed.scores(state, torch.from_numpy(tokens).to(self._packed.device))
        logs = torch.log_softmax(scores.double(), 0).tolist()
        self._opinions.note(tokens.tolist(), logs)
        depth = node.depth + 1
        for token, low, high, log in zip(tokens.tolist(), lows.tolist(), highs.tolist(), logs, strict=True):
            child = Node(low, high, depth, (*node.tokens, token), node.score + log)
            heappush(self._heap, (-child.score, self._num_seen, child))
            self._num_seen += 1

    def _advance(self, state_behind: Callable[[Pieces], Tensor | None]) -> None:
        """Take the likeliest beginnings until enough are dishes, or `WIDTH` of them need their states."""
        self._waiting = []
        known: list[tuple[float, int, Node]] = []  # dishes; what is ahead of them may hide better ones
        while self._heap and len(self._waiting) < WIDTH and len(self.found) + len(known) < self._count:
            entry = heappop(self._heap)
            node, is_dish = entry[2].run_forced(self._moves)
            if is_dish and self._waiting:
                known.append(entry)
            elif is_dish:
                self.found.append(Dish(node.tokens, node.score))
            elif (state := state_behind(node.tokens)) is not None:
                self._look_behind(node, state)
            else:
                self._waiting.append(node)
        for entry in known:
            heappush(self._heap, entry)
