"""What a row's cache holds ahead of its plan: a tree of tokens that may follow, each with the model's state.

In: paths, which are tokens behind what is certain. Out: the tokens to feed, and, once the plan went on, which of the
fed ones are part of it. Guesses and the beginnings that a search asks about are paths alike: what they share is fed
once, and a right one is never fed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from planner.decoding.trie import Pieces


@dataclass(slots=True)
class Ahead:
    """The tree of one row. `states` has the last hidden state behind each path, `()` that of the last certain token.

    `parents` has one entry a token in the order fed: the place of the token before it, -1 the last certain token.
    """

    states: dict[Pieces, Any] = field(default_factory=dict)
    parents: list[int] = field(default_factory=list)
    _places: dict[Pieces, int] = field(default_factory=dict)

    def grow(self, paths: Iterable[Sequence[int]]) -> list[int]:
        """Add paths; the tokens that have to be fed for them."""
        new = []
        for path in map(tuple, paths):
            for stop in range(1, len(path) + 1):
                piece = path[:stop]
                if piece not in self._places:
                    self._places[piece] = len(self.parents)
                    self.parents.append(self._places.get(piece[:-1], -1))
                    new.append(piece[-1])
        return new

    def fill(self, states: Sequence[Any] | Tensor) -> None:
        """Take the states of the tokens that were fed; those in front of the tree's new ones are certain."""
        new = [path for path in self._places if path not in self.states]
        first = len(states) - len(new)
        if first:
            self.states[()] = states[first - 1]
        self.states |= {path: states[first + place] for place, path in enumerate(new)}

    def behind(self, path: Pieces) -> Callable[[Pieces], Any]:
        """Gives the states of what goes on from a path, None where they are not known."""
        return lambda tokens: self.states.get(path + tokens)

    def settle(self, written: Pieces) -> tuple[int, list[int]]:
        """The plan went on by these tokens: forget what they contradict.

        Returns:
            How many of them are in the tree, and the places of all that is kept: those, and where they are all of
            them what may follow. What is certain comes first.
        """
        right = 0
        while right < len(written) and written[: right + 1] in self._places:
            right += 1
        path = written[:right]
        ahead = [p for p in self._places if right == len(written) and len(p) > right and p[:right] == path]
        places = [self._places[p] for p in (*(path[:n] for n in range(1, right + 1)), *ahead)]
        known = (path, *ahead) if right == len(written) and path in self.states else ()
        self.states = {p[right:]: self.states[p] for p in known}
        self._places = {p[right:]: place for place, p in enumerate(ahead)}
        self.parents = [self._places.get(p[:-1], -1) for p in self._places]
        return right, places
