"""Which beginnings of titles a search is likely to ask about, before the model has said so.

In: what the model thought of tokens in this request's earlier titles. Out: beginnings to feed with a call that is made
anyway. A household that likes soups is asked for lentil soup and bean soup alike: the mean log probability of ` Soup`
where it was legal stands for the next place where it is. Nothing here can change a plan; a wrong one is fed in vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from planner.decoding.moves import PlanMoves
from planner.decoding.trie import Pieces

# Measured on synthetic catalogues of 500 and 100,000 recipes (docs/log.md).
LEAST = -3.0  # log probability behind the likeliest of what is asked for anyway
AT_ROOT = 8  # beginnings that are fed with a day
BEHIND = 4  # and behind those that a search asks about
_CHILDREN = 12  # of a node, the likeliest


@dataclass(frozen=True, slots=True)
class Node:
    """Leaves `low` to `high` of the trie, which share their first `depth` tokens; `tokens` lead there."""

    low: int
    high: int
    depth: int
    tokens: Pieces
    score: float  # log probability

    def run_forced(self, moves: PlanMoves) -> tuple[Node, bool]:
        """Go on while one token is legal and more than one dish is left; whether one dish is."""
        node = self
        while not moves.is_dish(node.low, node.high):
            shared = moves.shared(node.low, node.high, node.depth)
            if shared:
                node = Node(node.low, node.high, node.depth + len(shared), (*node.tokens, *shared), node.score)
            tokens, lows, highs = moves.legal_children(node.low, node.high, node.depth)
            if len(tokens) != 1:
                return node, False
            node = Node(int(lows[0]), int(highs[0]), node.depth + 1, (*node.tokens, int(tokens[0])), node.score)
        return node, True


class Opinions:
    """The mean log probability of each token that stood to choice in one request's titles."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def note(self, tokens: Iterable[int], logs: Iterable[float]) -> None:
        """Take note of the log probabilities at one place."""
        for token, log in zip(tokens, logs, strict=True):
            self._sums[token] = self._sums.get(token, 0.0) + log
            self._counts[token] = self._counts.get(token, 0) + 1

    def likely(self, moves: PlanMoves, nodes: Sequence[Node], most: int) -> list[Pieces]:
        """Beginnings below nodes that a search may come to, the likeliest first.

        Args:
            moves: the plan so far.
            nodes: whose states will be known, the likeliest first.
            most: beginnings to find.
        """
        heap = [(-node.score, number, node) for number, node in enumerate(nodes)]
        heapify(heap)
        found: list[Pieces] = []
        num_seen = len(heap)
        while self._sums and heap and len(found) < most:
            _, number, node = heappop(heap)
            if node.score < nodes[0].score + LEAST:
                break
            if number >= len(nodes):
                found.append(node.tokens)
            for child in self._children(moves, node):
                begun, is_dish = child.run_forced(moves)
                if not is_dish:
                    heappush(heap, (-begun.score, num_seen, begun))
                    num_seen += 1
        return found

    def _children(self, moves: PlanMoves, node: Node) -> list[Node]:
        tokens, lows, highs = moves.legal_children(node.low, node.high, node.depth)
        known = [
            Node(low, high, node.depth + 1, (*node.tokens, token), node.score + self._sums[token] / self._counts[token])
            for token, low, high in zip(tokens.tolist(), lows.tolist(), highs.tolist(), strict=True)
            if token in self._sums
        ]
        return sorted(known, key=lambda child: -child.score)[:_CHILDREN]
