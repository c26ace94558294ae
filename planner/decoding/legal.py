"""Which tokens may come next, for decoders that are not ours: a pure function of the prefix and the request.

In: a catalogue and its tokenizer, or a folder that `export_package` wrote. Out: the legal tokens; whoever takes only
these writes a plan that breaks no constraint. No model is involved, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.prompt import default_servings
from planner.contracts.request import Request
from planner.decoding.constraints import Allowed, ConstraintIndex
from planner.decoding.files import read_json
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import CatalogueTrie, build_trie


class LegalTokens:
    """The catalogue prepared once; then every call is a pure function.

    Args:
        catalogue: the dishes that may be proposed.
        tokenizer: of the model that decodes.
        repeats: whether a dish may stand twice in a plan.
        max_prep_time_by_day: minutes by weekday that a dish may take there, beside the request's own limit.

    Raises:
        ConfigError: that names no weekday, or no whole number.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        tokenizer: Any,
        *,
        repeats: bool = False,
        max_prep_time_by_day: Mapping[str, int | None] | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.constraints = ConstraintIndex(catalogue, max_prep_time_by_day=max_prep_time_by_day)
        self.trie: CatalogueTrie = build_trie(catalogue, tokenizer)
        self._repeats = repeats

    @classmethod
    def of_export(cls, folder: Path) -> LegalTokens:
        """Read catalogue and tokenizer of a folder that `export_package` wrote.

        Raises:
            ModelError: the folder is none, or holds a title that the tokenizer cannot write.
        """
        from transformers import AutoTokenizer

        catalogue = Catalogue.of(Recipe.from_dict(row) for row in read_json(folder / "catalogue.json"))
        options = read_json(folder / "handles.json")["decoding"]
        tokenizer = AutoTokenizer.from_pretrained(folder / "merged", local_files_only=True, trust_remote_code=False)
        limits = options.get("max_prep_time_by_day")  # older exports have none
        return cls(catalogue, tokenizer, repeats=options["repeats"], max_prep_time_by_day=limits)

    def infeasible_reason(self, request: Request) -> str | None:
        """Why no plan can satisfy the request, or None; such a request needs no decoding at all."""
        return self.constraints.infeasible_reason(self.constraints.allowed(request))

    def moves(self, request: Request, allowed: Allowed | None = None) -> PlanMoves:
        """A plan's walk from its beginning, for decoders that keep one a request and `take` each token.

        Args:
            request: what is planned for.
            allowed: the recipes that it allows, where they are known already.
        """
        allowed = self.constraints.allowed(request) if allowed is None else allowed
        costs, usual = self.constraints.cost_cents, default_servings(request)
        return PlanMoves(self.trie, self.catalogue, costs, allowed, usual, repeats=self._repeats)

    def after(self, prefix: Sequence[int], request: Request) -> list[int]:
        """The tokens that may follow `prefix`, the plan's tokens so far; none behind the end."""
        moves = self.moves(request)
        for token in prefix:
            moves.take(token)
        return [int(token) for token in moves.legal_tokens()]
