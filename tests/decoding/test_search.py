"""Deciding whole dishes, against a brute force that scores every legal dish with plain forward passes."""

from __future__ import annotations

import random
from functools import lru_cache

import pytest
import torch

from planner.contracts.plan import EMPTY_PLAN
from planner.contracts.prompt import (
    DAY_LABELS,
    encode_prompt,
    encode_target,
    parse_plan_text,
    render_plan,
    render_prompt,
)
from planner.decoding.decoder import UNWRITABLE, Decoder
from planner.evaluation.verify import is_satisfiable, violations
from tests.decoding.fuzz import fuzz_catalogue, fuzz_limits
from tests.decoding.test_decoder import Naive
from tests.decoding.test_fuzz import over_day_limits
from tests.decoding.test_guess import decoder_with, fuzz_with_history
from tests.tiny import tiny_catalogue, tiny_requests


@pytest.fixture(scope="module")
def small():
    return tiny_catalogue(14)


@pytest.fixture(scope="module")
def requests(small):
    return tiny_requests(16, 11, catalogue=small)


class BruteForce:
    """A plan by the definition: no trie, no cache, no search; every dish that may come next gets its probability."""

    def __init__(self, model, tokenizer, catalogue, request, limits=None):
        self.model, self.tokenizer, self.catalogue, self.request = model, tokenizer, catalogue, request
        self.prompt = encode_prompt(tokenizer, render_prompt(request, catalogue))
        self.naive = Naive(tokenizer, catalogue, request, limits)
        self.next_logs = lru_cache(maxsize=None)(self._next_logs)

    def plan_tokens(self, beam: int = 1) -> list[int]:
        """The plan of a beam: rows of (tokens, probability of going on, log probability of the dishes)."""
        rows = [([], 1.0, 0.0)]
        while not all(self.is_finished(written) for written, _, _ in rows):
            found = []
            for written, going_on, score in map(self.up_to_a_dish, rows):
                if self.is_finished(written):
                    found.append((score / self.num_lines(written), (written, going_on, score)))
                    continue
                for log, path in self.dishes(written)[:beam]:
                    row = ([*written, *path], going_on, score + log)
                    found.append((row[2] / (self.num_lines(written) + 1), row))
            rows = [row for _, row in sorted(found, key=lambda each: -each[0])[:beam]]
        return rows[0][0]

    def is_finished(self, written) -> bool:
        return written[-1:] == [self.tokenizer.eos_token_id]

    def num_lines(self, written) -> int:
        return self.tokenizer.decode(written).count("\n")

    def up_to_a_dish(self, row):
        """Go on, greedily and with the median length, until several dishes may stand next, or nothing."""
        (written, going_on, score), end = row, self.tokenizer.eos_token_id
        while not self.is_finished(written):
            if self.before_a_title(written) and len(self.dishes(written)) > 1:
                break
            legal = self.next_logs(tuple(written))
            if end in legal and len(legal) > 1:
                going_on *= 1 - legal[end].exp().item()
                legal = {end: legal[end]} if going_on < 0.5 else {k: v for k, v in legal.items() if k != end}
            written = [*written, max(legal, key=lambda token: legal[token].item())]
        return written, going_on, score

    def before_a_title(self, written) -> bool:
        return self.tokenizer.decode(written).rpartition("\n")[2] in {f"{label}:" for label in DAY_LABELS}

    def dishes(self, written) -> list[tuple[float, list[int]]]:
        """Every dish that may stand next, the likeliest first: log probability and the tokens that name it."""
        text = self.tokenizer.decode(written)
        done = text[: text.rfind("\n") + 1]
        start = len(self.naive.encode(done))
        begun = written[start:]
        lines = [tokens for tokens in self.naive.continuations(done) if tokens[: len(begun)] == begun]
        dish_of = {tuple(tokens): self.dish_of(tokens) for tokens in lines}
        found = []
        for dish in set(dish_of.values()):
            own = [tokens for tokens in lines if dish_of[tuple(tokens)] == dish]
            depth = len(begun)
            # The tokens that name the dish: as far as others than its own lines go the same way.
            while any(t[:depth] == own[0][:depth] and dish_of[tuple(t)] != dish for t in lines):
                depth += 1
            path = own[0][len(begun) : depth]
            score = sum(self.next_logs((*written, *path[:i]))[token].item() for i, token in enumerate(path))
            found.append((score, path))
        return sorted(found, reverse=True)

    def dish_of(self, line_tokens) -> str:
        return parse_plan_text(self.tokenizer.decode(line_tokens), self.request, self.catalogue).meals[0].recipe_id

    def _next_logs(self, written):
        legal = self.naive(list(written))
        with torch.no_grad():
            logits = self.model(torch.tensor([[*self.prompt, *written]])).logits[0, -1, legal]
        return dict(zip(legal, torch.log_softmax(logits.double(), 0), strict=True))


def check_by_brute_force(base, small, requests, results, beam: int, limits=None) -> set[int]:
    """The lengths of the plans, which are those of the definition."""
    lengths = set()
    for request, result in zip(requests, results, strict=True):
        if result.feasible:
            expected = BruteForce(base.model, base.tokenizer, small, request, limits).plan_tokens(beam)
            assert encode_target(base.tokenizer, render_plan(result.plan, request, small)) == expected
            assert result.num_tokens == len(expected)
            lengths.add(len(result.plan.meals))
        else:
            assert result.plan == EMPTY_PLAN
    return lengths


def test_each_dish_is_the_likeliest_whole_one_and_the_length_is_the_median(base, small, requests):
    results = Decoder(base.model, base.tokenizer, small, decide="dish").plan(requests)
    assert sum(result.feasible for result in results) >= 10
    assert len(check_by_brute_force(base, small, requests, results, 1)) > 1


@pytest.mark.parametrize("beam", [1, 2])
def test_dishes_under_limits_of_single_days_are_those_of_the_definition(base, small, requests, beam):
    limits = {"monday": 25, "tuesday": 0, "wednesday": 20, "saturday": 30}
    options = {"decide": "dish", "beam": beam, "max_prep_time_by_day": limits}
    results = Decoder(base.model, base.tokenizer, small, **options).plan(requests[:8])
    assert check_by_brute_force(base, small, requests[:8], results, beam, limits)
    plans = [result.plan for result in results]
    assert not any(over_day_limits(plan, limits, small) for plan in plans)
    assert plans != [r.plan for r in Decoder(base.model, base.tokenizer, small, decide="dish").plan(requests[:8])]
    alone = Decoder(base.model, base.tokenizer, small, **options, guess=False, max_rows=1)
    assert [result.plan for result in alone.plan(requests[:8])] == plans


@pytest.mark.parametrize(("beam", "max_rows", "num_requests"), [(2, 1, 8), (3, 16, 8), (20, 64, 4)])
def test_beam_over_dishes_is_that_of_the_definition_alone_and_in_a_batch(
    base, small, requests, beam, max_rows, num_requests
):
    requests = requests[:num_requests]
    decoder = Decoder(base.model, base.tokenizer, small, decide="dish", beam=beam, max_rows=max_rows)
    assert len(check_by_brute_force(base, small, requests, decoder.plan(requests), beam)) > 1


def test_beam_of_one_is_the_likeliest_dish_at_each_place_and_a_wider_one_finds_other_plans(base, catalogue):
    requests = tiny_requests(30, 6, catalogue=catalogue)
    plain = Decoder(base.model, base.tokenizer, catalogue, decide="dish").plan(requests)
    plans = [Decoder(base.model, base.tokenizer, catalogue, decide="dish", beam=beam).plan(requests) for beam in (1, 4)]
    assert plans[0] == plain != plans[1]


def test_deciding_dishes_differs_from_deciding_tokens_and_repeats_no_dish(base, catalogue):
    requests = tiny_requests(30, 6, catalogue=catalogue)
    by_dish = [r.plan for r in Decoder(base.model, base.tokenizer, catalogue, decide="dish").plan(requests)]
    by_token = [r.plan for r in Decoder(base.model, base.tokenizer, catalogue).plan(requests)]
    assert by_dish != by_token
    assert all(len(plan.recipe_ids) == len(plan.meals) for plan in by_dish)


@pytest.mark.parametrize("max_rows", [1, 3])
@pytest.mark.parametrize("guess", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
def test_plans_by_dish_depend_on_neither_the_batch_nor_the_guesses(base, small, requests, max_rows, guess, beam):
    options = {"decide": "dish", "beam": beam}
    expected = [r.plan for r in Decoder(base.model, base.tokenizer, small, **options).plan(requests)]
    decoder = Decoder(base.model, base.tokenizer, small, **options, max_rows=max_rows, guess=guess)
    assert [r.plan for r in decoder.plan(requests)] == expected
    assert [r.plan for r in decoder.plan(requests[::-1])] == expected[::-1]


@pytest.mark.parametrize("beam", [1, 3])
def test_no_plan_by_dish_violates_a_constraint(base, catalogue, beam):
    requests = tiny_requests(60, 5, catalogue=catalogue)
    results = Decoder(base.model, base.tokenizer, catalogue, decide="dish", beam=beam).plan(requests)
    assert [violations(r.plan, request, catalogue) for request, r in zip(requests, results, strict=True)] == [()] * 60
    assert sum(r.feasible for r in results) > 40


@pytest.mark.parametrize("seed", range(12))
def test_no_plan_violates_a_constraint_under_made_up_scores_whatever_is_decided(base, seed):
    check_made_up_scores(base, seed, num_recipes=(1, 2, 5, 30, 120)[seed % 5], num_requests=12)


@pytest.mark.slow
def test_no_plan_of_a_beam_violates_a_constraint_in_3000_requests(base, capsys):
    num_meals = check_made_up_scores(base, 500, num_recipes=500, num_requests=3000)
    with capsys.disabled():
        print(f"\n500 recipes: 0 violations in {num_meals:,} meals of 3,000 requests, beams of 1, 2 and 5")


def check_made_up_scores(base, seed: int, *, num_recipes: int, num_requests: int) -> int:
    """Plan fuzzed requests by made-up scores; how many meals they have."""
    rng, num_meals = random.Random(seed), 0
    catalogue, _ = fuzz_catalogue(rng, num_recipes)
    requests = [fuzz_with_history(rng, catalogue) for _ in range(num_requests)]
    for beam in (1, 2, 5):
        limits = fuzz_limits(rng) if rng.random() < 0.5 else {}
        options = {"decide": "dish", "beam": beam, "seed": seed, "habit": rng.choice((0.0, 0.5, 2.0))}
        options["max_prep_time_by_day"] = limits
        results = decoder_with(base, catalogue, guess=True, max_rows=16, **options).plan(requests)
        for request, result in zip(requests, results, strict=True):
            plan = result.plan
            assert bool(plan.meals) == result.feasible and len(plan.recipe_ids) == len(plan.meals)
            assert not (violations(plan, request, catalogue) if plan.meals else ())
            assert not over_day_limits(plan, limits, catalogue)
            assert result.feasible == is_satisfiable(request, catalogue) or result.reason == UNWRITABLE or limits
            num_meals += len(plan.meals)
        few = requests[:12]
        alone = decoder_with(base, catalogue, guess=False, max_rows=1, **options).plan(few)
        assert [result.plan for result in alone] == [result.plan for result in results[:12]]
    return num_meals
