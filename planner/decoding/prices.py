"""What each leaf of the trie costs a plan at least, and the least below each branch of the nodes with many leaves.

In: a price for each leaf, `NEVER` where it may not stand. Out: which branches still have a dish within a budget. Near
the root a node has as many leaves as the catalogue has dishes; what was found there once is kept, and only the branch
of a dish that is eaten is looked at again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.decoding.trie import MANY, NEVER, CatalogueTrie


class Prices:
    """The prices of one plan; `of_leaf` are the prices themselves, to read."""

    def __init__(self, trie: CatalogueTrie, of_leaf: NDArray[np.int64]) -> None:
        self.of_leaf = of_leaf
        self._trie = trie
        # By (first leaf, depth): where the branches start, where the last ends, and the least of each.
        self._kept: dict[tuple[int, int], tuple[NDArray[np.int64], int, NDArray[np.int64]]] = {}

    def copy(self) -> Prices:
        """The same prices, to change on their own."""
        other = Prices(self._trie, self.of_leaf.copy())
        other._kept = {node: (starts, high, least.copy()) for node, (starts, high, least) in self._kept.items()}
        return other

    def least(self) -> int:
        """The least of all leaves."""
        num_leaves = self._trie.num_leaves
        below = self.of_leaf if num_leaves <= MANY else self.branches(0, num_leaves, 0)[2]
        return int(below.min())

    def branches(
        self, low: int, high: int, depth: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The tokens that follow at a node, ascending, where the leaves of each start, and the least of each."""
        tokens, starts = self._trie.children(low, high, depth)
        if high - low <= MANY:
            return tokens, starts, np.minimum.reduceat(self.of_leaf[low:high], starts - low)
        kept = self._kept.get((low, depth))
        if kept is None:
            least = np.minimum.reduceat(self.of_leaf[low:high], starts - low)
            kept = self._kept[low, depth] = (starts, high, least)
        return tokens, starts, kept[2]

    def forbid(self, leaves: NDArray[np.int64]) -> None:
        """These may not stand any more."""
        self.of_leaf[leaves] = NEVER
        for (low, _), (starts, high, least) in self._kept.items():
            within = leaves[(leaves >= low) & (leaves < high)]
            for branch in set((np.searchsorted(starts, within, "right") - 1).tolist()):
                stop = int(starts[branch + 1]) if branch + 1 < len(starts) else high
                least[branch] = self.of_leaf[starts[branch] : stop].min()

    def are_one_dish(self, low: int, high: int, left: int) -> bool:
        """Whether the leaves from `low` to `high` that cost at most `left` are all of one dish."""
        if high - low == 1:
            return True
        only = None
        for start in range(low, high, MANY):  # two dishes are soon found
            stop = min(high, start + MANY)
            recipes = self._trie.recipe[start:stop][self.of_leaf[start:stop] <= left]
            if len(recipes):
                only = recipes[0] if only is None else only
                if not (recipes == only).all():
                    return False
        return True
