"""Which tokens stood to choice at each place of a plan that is known: what a loss among legal tokens needs.

In: a catalogue, a tokenizer, and the tokens of accepted plans. Out: for each token the ids that the decoder would
have chosen among. A plan's text is mostly forced: behind the first letters of a title there is nothing left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.contracts.catalogue import Catalogue
from planner.decoding.constraints import Allowed
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import build_trie


class CatalogueTokens:
    """The legal tokens of plans of one catalogue, whatever a household excludes or can pay.

    Inactive recipes count: they were planned once. A dish stands once in a plan, unless the plan itself repeats one.

    Args:
        catalogue: of the plans.
        tokenizer: of the base model.

    Raises:
        ModelError: a title cannot be written and read back with this tokenizer.
    """

    def __init__(self, catalogue: Catalogue, tokenizer: Any) -> None:
        self._catalogue = Catalogue.of(replace(recipe, active=True) for recipe in catalogue.recipes)
        self._trie = build_trie(self._catalogue, tokenizer)
        self._costs = np.zeros(len(catalogue.recipes), dtype=np.int64)
        self._allowed = Allowed(np.ones(len(catalogue.recipes), dtype=bool), (), None)

    def __call__(self, servings: int, target_ids: Sequence[int]) -> tuple[NDArray[np.int64], ...] | None:
        """The ids, ascending, that may stand at each place of a target.

        Args:
            servings: what a line without a number means.
            target_ids: the tokens of a rendered plan with the end token.

        Returns:
            One array a token, or None where the target is no plan of this catalogue.
        """
        return self._walk(servings, target_ids, repeats=False) or self._walk(servings, target_ids, repeats=True)

    def _walk(self, servings: int, target_ids: Sequence[int], *, repeats: bool) -> tuple[NDArray[np.int64], ...] | None:
        moves = PlanMoves(self._trie, self._catalogue, self._costs, self._allowed, servings, repeats=repeats)
        found = []
        for token in target_ids:
            legal = moves.legal_tokens()
            if token not in legal:
                return None
            found.append(legal)
            moves.take(token)
        return tuple(found) if moves.finished else None
