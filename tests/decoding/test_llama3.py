"""The tokenizer of Llama 3: titles that it merges with their line's end are written and read back all the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.prompt import default_servings, encode_prompt, encode_target, parse_plan_text, render_plan
from planner.contracts.request import Household, Request
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.moves import PlanMoves
from planner.decoding.trie import build_trie
from planner.evaluation.verify import violations
from tests.decoding.fuzz import fuzz_catalogue, fuzz_request
from tests.decoding.llama3 import llama3_tokenizer
from tests.decoding.test_trie import odd_catalogue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return llama3_tokenizer(tmp_path_factory.mktemp("llama3"))


def test_it_is_the_tokenizer_that_meta_tests(tokenizer):
    # As in the package's own tests.
    assert tokenizer.encode("This is a test sentence.") == [128000, 2028, 374, 264, 1296, 11914, 13]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (128000, 128001)
    assert encode_prompt(tokenizer, "This is") == [128000, 2028, 374]
    assert tokenizer.decode(tokenizer.encode("Chili (hot)\n")[-1]) == ")\n"  # one token


def test_every_odd_title_is_written_and_read_back_on_every_day_with_any_servings(tokenizer):
    catalogue = odd_catalogue()
    trie, index = build_trie(catalogue, tokenizer), ConstraintIndex(catalogue)
    request = Request(Household("h", 4))
    allowed = index.allowed(request)
    for row, recipe in enumerate(catalogue.recipes):
        for servings in (4, 1, 3, 6, 12):
            plan = Plan((Meal(WEEKDAYS[(row + servings) % 7], recipe.id, servings),))
            text = render_plan(plan, request, catalogue)
            if parse_plan_text(text, request, catalogue) != plan:
                continue  # `Soup x2` as two servings of Soup: that text means the dish
            tokens = encode_target(tokenizer, text)
            assert tokenizer.decode(tokens[:-1]) == text
            assert tokenizer.encode(tokenizer.decode(tokens[:-1]), add_special_tokens=False) == tokens[:-1]
            moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, 4)
            for token in tokens:
                assert token in moves.legal_tokens(), (recipe.title, tokenizer.decode(moves.tokens))
                moves.take(token)
            assert moves.finished and moves.plan == plan


def test_every_random_plan_is_the_tokens_of_its_own_text(tokenizer):
    rng, numbers = random.Random(3), np.random.default_rng(3)
    catalogue, _ = fuzz_catalogue(rng, 2000)
    trie, index, num_plans = build_trie(catalogue, tokenizer), ConstraintIndex(catalogue), 0
    while num_plans < 1000:
        request, _ = fuzz_request(rng)
        allowed = index.allowed(request)
        if index.infeasible_reason(allowed) is not None:
            continue
        moves = PlanMoves(trie, catalogue, index.cost_cents, allowed, default_servings(request))
        while len(legal := moves.run_forced()):
            moves.take(int(legal[int(numbers.integers(len(legal)))]))
        if not moves.plan.meals:
            continue  # nothing can be written that is not another dish's title
        text = tokenizer.decode(moves.tokens[:-1])
        assert encode_target(tokenizer, text) == moves.tokens
        assert parse_plan_text(text, request, catalogue) == moves.plan
        assert not violations(moves.plan, request, catalogue)
        num_plans += 1
