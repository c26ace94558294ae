"""The walk of legal tokens: what it reaches, and how many servings it plans; `test_fuzz.py` has random scores."""

from __future__ import annotations

import numpy as np
import pytest

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.plan import DAY_INDEX
from planner.contracts.prompt import default_servings
from planner.contracts.request import Constraints, Household, Request
from planner.decoding import prices
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.legal import LegalTokens
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import build_trie
from tests.tiny import tiny_catalogue


def random_walk(rng: np.random.Generator, moves: PlanMoves) -> None:
    while len(legal := moves.run_forced()):
        assert list(legal) == sorted(set(legal))
        moves.take(int(legal[int(rng.integers(len(legal)))]))


def test_every_plan_within_the_rules_can_be_reached(base):
    catalogue = Catalogue.of([Recipe("a", "Soup", cost_per_serving=1.0), Recipe("b", "Soup Pie", cost_per_serving=2.0)])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", 1), constraints=Constraints(budget=3.0))
    allowed = index.allowed(request)
    reached = set()

    def explore(path: tuple[int, ...]) -> None:
        moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, 1)
        for token in path:
            moves.run_forced()
            moves.take(token)
        legal = moves.run_forced()
        if not len(legal):
            reached.add(tuple((m.day, m.recipe_id, m.servings) for m in moves.plan.meals))
        for token in legal:
            explore((*path, int(token)))

    explore(())
    days = list(DAY_INDEX)
    single = {((day, dish, n),) for day in days for dish, n in (("a", 1), ("a", 2), ("a", 3), ("b", 1))}
    pairs = {
        ((one, x, 1), (two, y, 1))
        for index, one in enumerate(days)
        for two in days[index + 1 :]
        for x, y in (("a", "b"), ("b", "a"))
    }
    assert reached == single | pairs


@pytest.mark.parametrize("size", [2**31 - 1, 100_000, 0])
def test_implausible_household_size_gets_a_plan_of_plausible_or_usual_servings(base, size):
    catalogue = Catalogue.of([Recipe("a", "Soup", cost_per_serving=1.0)])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", size), constraints=Constraints(budget=50.0))
    moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(request), default_servings(request))
    random_walk(np.random.default_rng(0), moves)
    assert 1 <= moves.plan.meals[0].servings <= 50


def test_what_is_kept_of_large_nodes_is_what_looking_again_gives(base, monkeypatch):
    catalogue = tiny_catalogue(144)
    request = Request(Household("h", 2), constraints=Constraints(budget=120.0))
    for many in (1, 20, 10_000):
        monkeypatch.setattr(prices, "MANY", many)
        legal = LegalTokens(catalogue, base.tokenizer)
        moves, rng = legal.moves(request), np.random.default_rng(3)
        while len(tokens := moves.run_forced()):
            moves.take(int(rng.choice(tokens)))
            if moves.place().kind == "title":
                other = moves.copy()
                low, high, depth = (place := moves.place()).low, place.high, place.depth
                afforded = moves.afforded(low, high, place.day)
                assert moves.is_dish(low, high) == (len(set(legal.trie.recipe[low:high][afforded].tolist())) <= 1)
                if high - low > 1:
                    column = legal.trie.tokens[low:high, depth]
                    assert set(other.legal_tokens().tolist()) == set(column[afforded].tolist())
        assert moves.plan.meals
