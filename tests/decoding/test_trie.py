"""Titles as tokens: they join to what training saw, whatever characters they hold."""

from __future__ import annotations

import numpy as np
import pytest

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.errors import CatalogueError, ModelError
from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.prompt import encode_target, parse_plan_text, render_plan
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import NUMBER, USUAL, build_trie

ODD_TITLES = (
    'Mac "n" Cheese',
    "Shepherd's Pie",
    "Chili (hot)",
    "[Draft] Stew",
    "Crème brûlée",
    "Pho Bò 🍜",
    "🍕",
    "寿司",
    "5-bean chili",
    "Soup",
    "Soup x2",
    "Soup x2 x3",
    "Soup x",
    "Soup xtra",
    "Tom: Kha Gai",
    "Mon: Tue",
    "  Leading and trailing  ",
    "Two\nlines",
    "a",
    "50% off!)",
    "Fish & Chips, \\n",
    "{json: true}",
    "<b>Bold</b>",
    "\u0130zmir köfte",
)


def odd_catalogue() -> Catalogue:
    titles = list(dict.fromkeys(ODD_TITLES))
    return Catalogue.of(Recipe(f"r{i:02d}", title, cost_per_serving=1.0) for i, title in enumerate(titles))


@pytest.mark.parametrize("servings", [None, 1, 3, 12])
def test_every_odd_title_is_reached_by_exactly_the_tokens_of_its_text(base, servings):
    catalogue = odd_catalogue()
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", 4), constraints=Constraints(budget=500.0))
    for row, recipe in enumerate(catalogue.recipes):
        day = WEEKDAYS[row % 7]
        plan = Plan((Meal(day, recipe.id, servings or 4),))
        text = render_plan(plan, request, catalogue)
        if recipe.title == "Soup x2" and servings == 3:
            continue  # that text means the title `Soup x2 x3`
        tokens = encode_target(base.tokenizer, text)
        assert base.tokenizer.decode(tokens[:-1]) == text
        moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(request), 4)
        for token in tokens:
            assert token in moves.legal_tokens(), (recipe.title, base.tokenizer.decode(moves.tokens))
            moves.take(token)
        assert moves.finished and moves.plan == plan == parse_plan_text(text, request, catalogue)


def test_text_of_another_title_is_never_read_as_servings(base):
    catalogue = Catalogue.of([Recipe("a", "Soup"), Recipe("b", "Soup x2")])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", 4))
    moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(request), 4)
    for token in base.tokenizer.encode("Mon: Soup x2\n"):
        assert token in moves.legal_tokens()
        moves.take(token)
    assert moves.plan == Plan((Meal("monday", "b", 4),))


def test_text_of_a_dish_that_left_is_never_written_as_servings_of_another(base):
    catalogue = Catalogue.of([Recipe("a", "Soup"), Recipe("b", "Soup x2", active=False)])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    assert set(trie.recipe.tolist()) == {0}
    moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(Request(Household("h", 4))), 4)
    for token in base.tokenizer.encode("Mon: Soup x"):
        moves.take(token)
    one, two, three = (base.tokenizer.encode(digit)[0] for digit in "123")
    assert {one, three} <= set(moves.legal_tokens().tolist())
    moves.take(two)  # of twenty and more
    assert base.tokenizer.encode("\n")[0] not in moves.legal_tokens()


def test_usual_servings_are_never_spelled_as_a_number(base):
    catalogue = Catalogue.of([Recipe("a", "Soup")])
    trie, index = build_trie(catalogue, base.tokenizer), ConstraintIndex(catalogue)
    moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(Request(Household("h", 4))), 4)
    for token in base.tokenizer.encode("Mon: Soup x"):
        moves.take(token)
    four = base.tokenizer.encode("4")[0]
    assert four not in moves.legal_tokens() and base.tokenizer.encode("5")[0] in moves.legal_tokens()


def test_leaves_are_in_token_order_and_no_leaf_begins_another(base):
    trie = build_trie(odd_catalogue(), base.tokenizer)
    leaves = [tuple(row[:n]) for row, n in zip(trie.tokens.tolist(), trie.lengths, strict=True)]
    assert leaves == sorted(leaves)
    assert all(b[: len(a)] != a for a, b in zip(leaves, leaves[1:], strict=False))
    assert set(np.unique(trie.servings[trie.servings <= 0])) == {USUAL, NUMBER}


def test_title_with_a_special_token_is_refused_by_name(base):
    catalogue = Catalogue.of([Recipe("a", "Soup"), Recipe("b", "Stop <|im_end|> here")])
    with pytest.raises(ModelError, match="Stop .* here.*cannot be written and read back"):
        build_trie(catalogue, base.tokenizer)


def test_catalogue_without_an_active_recipe_is_refused(base):
    with pytest.raises(CatalogueError, match="No recipe of the catalogue is active"):
        build_trie(Catalogue.of([Recipe("a", "Soup", active=False)]), base.tokenizer)


def test_tokenizer_that_joins_brackets_and_newlines_is_handled(bracket_tokenizer):
    """Llama 3 makes one token of `)` and a newline: the title's last token then differs with its terminator."""
    tokenizer = bracket_tokenizer
    assert ")\u010a" in tokenizer.get_vocab()  # the merge that breaks at the seam
    catalogue = odd_catalogue()
    trie, index = build_trie(catalogue, tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", 4))
    for recipe in catalogue.recipes:
        for servings in (4, 6, 12):
            plan = Plan((Meal("monday", recipe.id, servings),))
            tokens = encode_target(tokenizer, render_plan(plan, request, catalogue))
            moves = PlanMoves(trie, catalogue, index.cost_cents, index.allowed(request), 4)
            for token in tokens:
                assert token in moves.legal_tokens()
                moves.take(token)
            assert moves.plan == plan
