"""Guesses spare calls and change no plan: with and without them, under the tiny model and under made-up scores."""

from __future__ import annotations

import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.prompt import encode_prompt, encode_target, render_plan, render_prompt
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.decoder import Decoder
from planner.decoding.guess import PRIORS, Guesser, Leaves, Piece
from tests.decoding.fuzz import fuzz_catalogue, fuzz_limits, fuzz_request
from tests.decoding.test_trie import odd_catalogue
from tests.tiny import tiny_catalogue, tiny_requests


class FakeCache:
    """The tokens that a row's cache would hold."""

    def __init__(self):
        self.tokens = []

    def keep(self, length, slots):
        self.tokens = [*self.tokens[:length], *(self.tokens[slot] for slot in slots)]

    def copy_prefix(self, other, length):
        self.tokens = other.tokens[:length]


class FakeModel:
    """Stands for `PackedModel`: scores depend on a row's whole text, and prefer the tokens that it holds already."""

    device = torch.device("cpu")
    max_positions = 4096

    def __init__(self, seed: int, habit: float):
        self.seed, self.habit = seed, habit
        self.num_calls = self.num_tokens = 0

    def new_row(self, capacity):
        return FakeCache()

    def forward(self, rows, trees=()):
        self.num_calls += 1
        states = []
        for index, (cache, tokens) in enumerate(rows):
            assert len(tokens)
            self.num_tokens += len(tokens)
            cache.tokens.extend(tokens)
            parents = trees[index] if trees else ()
            first = len(cache.tokens) - len(parents)
            seen = [tuple(cache.tokens[: n + 1]) for n in range(len(cache.tokens) - len(tokens), first)]
            paths = []
            for token, parent in zip(cache.tokens[first:], parents, strict=True):
                paths.append((*(paths[parent] if parent >= 0 else cache.tokens[:first]), token))
            states.append((seen + paths)[-len(tokens) :])
        return states

    def scores(self, state, token_ids):
        history = zlib.crc32(np.array([self.seed, *state], dtype=np.int64).tobytes())
        ids = token_ids.numpy()
        noise = ((ids * 2654435761) ^ history) * 40503 % 65521 / 65521
        tail = state[-1]
        pairs = {b for a, b in zip(state, state[1:], strict=False) if a == tail}
        return torch.from_numpy(noise + np.array([self.habit * (int(i) in pairs) for i in ids]))


def decoder_with(base, catalogue, *, guess, max_rows=4, seed=0, habit=0.8, **options):
    decoder = Decoder(base.model, base.tokenizer, catalogue, guess=guess, max_rows=max_rows, **options)
    decoder.packed = FakeModel(seed, habit)
    return decoder


@pytest.mark.parametrize("max_rows", [1, 2, 16])
def test_plans_are_those_without_guesses_in_fewer_calls(base, max_rows):
    catalogue = tiny_catalogue(40)
    requests = tiny_requests(30, 8, catalogue=catalogue)
    options = {"max_rows": max_rows}
    plain, guessing = (Decoder(base.model, base.tokenizer, catalogue, guess=g, **options) for g in (False, True))
    one, two = plain.plan(requests), guessing.plan(requests)
    assert [r.plan for r in one] == [r.plan for r in two]
    assert [r.num_decisions for r in one] == [r.num_decisions for r in two]
    assert sum(r.num_rejected for r in one) == 0
    assert [r.num_model_calls for r in one] == [r.num_decisions for r in one]
    assert sum(r.num_model_calls for r in two) < sum(r.num_model_calls for r in one)
    assert all(b.num_model_calls <= a.num_model_calls for a, b in zip(one, two, strict=True))
    rejected = sum(r.num_rejected for r in two)
    assert rejected and guessing.packed.num_tokens >= plain.packed.num_tokens


def fuzz_with_history(rng, catalogue):
    request, _ = fuzz_request(rng)
    if rng.random() < 0.3:
        return request
    days = sorted(rng.sample(range(7), rng.randrange(1, 8)))
    dishes = [rng.choice(catalogue.recipes).id if rng.random() < 0.9 else "gone" for _ in days]
    meals = (Meal(WEEKDAYS[d], dish, rng.choice((1, 2, 4, 250))) for d, dish in zip(days, dishes, strict=True))
    return replace(request, previous_plan=Plan(tuple(meals)))


@pytest.mark.parametrize("seed", range(16))
def test_plans_are_those_without_guesses_under_made_up_scores(base, seed):
    rng = random.Random(seed)
    catalogue, _ = fuzz_catalogue(rng, rng.choice((1, 2, 5, 30, 120)))
    requests = [fuzz_with_history(rng, catalogue) for _ in range(12)]
    habit = rng.choice((0.0, 0.5, 2.0))
    rules = {"repeats": rng.random() < 0.3, "max_prep_time_by_day": fuzz_limits(rng) if seed % 2 else {}}
    plain = decoder_with(base, catalogue, guess=False, max_rows=1, seed=seed, habit=habit, **rules)
    expected = plain.plan(requests)
    for max_rows, call_tokens in ((1, 19.0), (1, 1e9), (5, 19.0), (3, 400.0), (16, 0.0)):
        options = {"max_rows": max_rows, "call_tokens": call_tokens, **rules}
        found = decoder_with(base, catalogue, guess=True, seed=seed, habit=habit, **options).plan(requests)
        assert [r.plan for r in found] == [r.plan for r in expected]
        assert [(r.feasible, r.reason) for r in found] == [(r.feasible, r.reason) for r in expected]
        assert [r.num_decisions for r in found] == [r.num_decisions for r in expected]


@pytest.mark.parametrize("seed", range(6))
def test_odd_titles_of_a_tokenizer_that_joins_brackets_and_newlines_change_nothing(base, bracket_tokenizer, seed):
    rng, catalogue = random.Random(seed), odd_catalogue()
    requests = [fuzz_with_history(rng, catalogue) for _ in range(30)]
    plans = []
    for guess in (False, True):
        decoder = Decoder(base.model, bracket_tokenizer, catalogue, guess=guess, max_rows=1, call_tokens=1e9)
        decoder.packed = FakeModel(seed, 1.0)
        plans.append(decoder.plan(requests))
    assert plans[0] == plans[1] and any(result.plan.meals for result in plans[0])


def test_only_rejected_guesses_are_computed_in_vain(base):
    catalogue = tiny_catalogue(40)
    requests = tiny_requests(20, 5, catalogue=catalogue)
    for guess in (False, True):
        decoder = decoder_with(base, catalogue, guess=guess, max_rows=1)
        results = decoder.plan(requests)
        wanted = len(decoder._prefix)
        for request, result in zip(requests, results, strict=True):
            if not result.feasible:
                continue
            prompt = encode_prompt(base.tokenizer, render_prompt(request, catalogue))
            target = encode_target(base.tokenizer, render_plan(result.plan, request, catalogue))
            # Behind the last decision nothing is fed; how much that is differs with what that decision was.
            wanted += len(prompt) - len(decoder._prefix) + len(target) + result.num_rejected
        assert decoder.packed.num_tokens <= wanted
        assert decoder.packed.num_tokens >= wanted - 2 * 16 * len(requests)
        assert sum(r.num_model_calls for r in results) == decoder.packed.num_calls - 1  # one for the shared prefix


def test_week_that_repeats_takes_one_call(base):
    catalogue = tiny_catalogue(40)
    meals = tuple(Meal(day, catalogue.recipes[3 * i].id, 2) for i, day in enumerate(WEEKDAYS))
    request = Request(Household("h", 2), previous_plan=Plan(meals))
    decoder = decoder_with(base, catalogue, guess=True, max_rows=1, call_tokens=1e9)
    target = encode_target(base.tokenizer, render_plan(Plan(meals), request, catalogue))
    prompt = encode_prompt(base.tokenizer, render_prompt(request, catalogue))

    def scores(state, ids):
        return (ids == target[len(state) - len(prompt)]).float()

    decoder.packed.scores = scores
    result = decoder.plan([request])[0]
    assert result.plan == Plan(meals)
    assert (result.num_model_calls, result.num_rejected) == (1, 0) and result.num_decisions > 14


def test_nothing_is_guessed_where_calls_cost_nothing(base):
    catalogue = tiny_catalogue(40)
    decoder = decoder_with(base, catalogue, guess=True, call_tokens=0.0)
    results = decoder.plan(tiny_requests(6, 5, catalogue=catalogue))
    assert all(r.num_rejected == 0 and r.num_model_calls == r.num_decisions for r in results)


def test_dish_that_is_not_allowed_any_more_is_not_guessed(base):
    catalogue = tiny_catalogue(40)
    dish = catalogue.recipes[0]
    previous = Plan((Meal("monday", dish.id, 2),))
    decoder = decoder_with(base, catalogue, guess=True)
    request = Request(Household("h", 2), previous_plan=previous)
    leaves, row_of = Leaves.of(decoder.trie, 40), {r.id: i for i, r in enumerate(catalogue.recipes)}
    guesser = Guesser(decoder.trie, leaves, row_of, previous, 2)

    def text(request):
        pieces = guesser.draft(decoder.legal.moves(request), 1e9)
        return base.tokenizer.decode([token for piece in pieces for token in piece.tokens])

    assert text(request).startswith(f"Mon: {dish.title}\nTue:")
    ingredient = dish.ingredients[0].name
    assert text(replace(request, constraints=Constraints(excluded_ingredients=(ingredient,)))) == "Mon:"


def test_day_that_stays_free_is_not_guessed(base):
    catalogue = tiny_catalogue(40)
    previous = Plan(tuple(Meal(day, catalogue.recipes[i].id, 2) for i, day in enumerate(WEEKDAYS)))
    decoder = decoder_with(base, catalogue, guess=True, max_prep_time_by_day={"monday": 0, "wednesday": 0})
    request = Request(Household("h", 2), previous_plan=previous)
    row_of = {r.id: i for i, r in enumerate(catalogue.recipes)}
    guesser = Guesser(decoder.trie, Leaves.of(decoder.trie, 40), row_of, previous, 2)
    pieces = guesser.draft(decoder.legal.moves(request), 1e9)
    text = base.tokenizer.decode([token for piece in pieces for token in piece.tokens])
    assert [line[:3] for line in text.splitlines()][:2] == ["Tue", "Thu"]


def test_kind_of_guess_that_fails_is_made_no_more(base):
    catalogue = tiny_catalogue(40)
    decoder = decoder_with(base, catalogue, guess=True)
    guesser = Guesser(decoder.trie, Leaves.of(decoder.trie, 40), {}, None, 2)
    moves = decoder.legal.moves(Request(Household("h", 2)))
    assert [piece.kind for piece in guesser.draft(moves, 4.0)] == ["day"]
    for _ in range(30):
        guesser.learn([Piece("day", (1, 2))], 1)
    assert guesser.draft(moves, 4.0) == []
    for _ in range(300):
        guesser.learn([Piece("day", (1, 2))], 2)
    assert [piece.kind for piece in guesser.draft(moves, 4.0)] == ["day"]
    assert set(PRIORS) == {"day", "dish", "known", "often", "alike", "few", "rest", "ending", "number"}


def test_beginning_of_the_last_dish_is_guessed_for_the_next(base):
    catalogue = tiny_catalogue(144)
    decoder = decoder_with(base, catalogue, guess=True)
    guesser = Guesser(decoder.trie, Leaves.of(decoder.trie, 144), {}, None, 2)
    moves = decoder.legal.moves(Request(Household("h", 2)))
    first = Plan((Meal("monday", catalogue.recipes[0].id, 2),))
    request = Request(Household("h", 2))
    for token in encode_target(base.tokenizer, render_plan(first, request, catalogue))[:-1]:
        moves.take(token)
    pieces = guesser.draft(moves, 1e9)
    text = base.tokenizer.decode([token for piece in pieces for token in piece.tokens])
    title = catalogue.recipes[0].title
    assert text.startswith(f"Tue: {title.split()[0]}") and title not in text  # the dish itself is eaten
    assert {piece.kind for piece in pieces[1:]} == {"alike"}


def test_dish_that_is_planned_for_everyone_is_guessed_for_the_next(base):
    catalogue = tiny_catalogue(40)
    requests = [Request(Household(f"h{index}", 2)) for index in range(6)]
    decoder = decoder_with(base, catalogue, guess=True, max_rows=1, call_tokens=40.0)
    wanted = encode_target(
        base.tokenizer,
        render_plan(Plan((Meal("monday", catalogue.recipes[17].id, 4),)), requests[0], catalogue),
    )
    length = len(encode_prompt(base.tokenizer, render_prompt(requests[0], catalogue)))
    decoder.packed.scores = lambda state, ids: (ids == wanted[len(state) - length]).float()
    results = [decoder.plan([request])[0] for request in requests]
    assert len({r.plan for r in results}) == 1
    assert results[-1].num_model_calls < results[0].num_model_calls
