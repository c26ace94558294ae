"""Plans drawn by temperature and top-p: by the model's probabilities, the same wherever a request stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from planner.contracts.errors import ContractError
from planner.contracts.request import Household, Request
from planner.decoding.decoder import Decoder
from planner.decoding.sampling import Sampler, Sampling
from planner.evaluation.verify import violations
from tests.tiny import tiny_catalogue, tiny_requests

REQUEST = Request(Household("h", 2))


@pytest.fixture(scope="module")
def small():
    return tiny_catalogue(30)


@pytest.fixture(scope="module")
def requests(small):
    return tiny_requests(24, 11, catalogue=small)


def plans_of(decoder, requests, sampling, size=24):
    groups = [requests[start : start + size] for start in range(0, len(requests), size)]
    return [result.plan for group in groups for result in decoder.plan(group, sampling=sampling)]


@pytest.mark.parametrize("decide", ["token", "dish"])
def test_drawn_plan_depends_on_seed_and_request_alone(base, small, requests, decide):
    sampling = Sampling(1.0, 0.9, seed=5)
    decoder = Decoder(base.model, base.tokenizer, small, decide=decide)
    expected = plans_of(decoder, requests, sampling)
    assert plans_of(decoder, requests, sampling, 1) == expected
    assert plans_of(decoder, requests[::-1], sampling, 5)[::-1] == expected
    for options in ({"guess": False}, {"max_rows": 3}, {"call_tokens": 1e9}):
        other = Decoder(base.model, base.tokenizer, small, decide=decide, **options)
        assert plans_of(other, requests, sampling) == expected
    others = plans_of(decoder, requests, replace(sampling, seed=6))
    assert sum(a != b for a, b in zip(others, expected, strict=True)) > 15


def test_drawn_plans_break_nothing(base, small, requests):
    decoder = Decoder(base.model, base.tokenizer, small)
    for seed, temperature in enumerate((0.5, 1.0, 5.0, 1000.0)):
        for request, plan in zip(requests, plans_of(decoder, requests, Sampling(temperature, seed=seed)), strict=True):
            assert plan.meals and not violations(plan, request, small)
            assert len(plan.recipe_ids) == len(plan.meals)


def test_hardly_any_temperature_or_top_p_is_greedy(base, small, requests):
    decoder = Decoder(base.model, base.tokenizer, small)
    greedy = [result.plan for result in decoder.plan(requests)]
    assert plans_of(decoder, requests, Sampling(1e-9)) == greedy
    assert plans_of(decoder, requests, Sampling(1.0, 1e-9)) == greedy
    assert plans_of(decoder, requests, Sampling(1.0)) != greedy


def test_whole_dishes_are_drawn_token_by_token_which_is_the_same(base, small, requests):
    kinds = ({}, {"decide": "dish"}, {"decide": "dish", "beam": 3})
    plans = [plans_of(Decoder(base.model, base.tokenizer, small, **kind), requests, Sampling(1.0)) for kind in kinds]
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8), (1.0, 0.3)])
def test_tokens_are_drawn_by_their_probabilities(temperature, top_p):
    scores, num = np.array([2.0, -1.0, 1.5, 0.0, 1.5]), 1500
    chances = np.exp(scores / temperature) / np.exp(scores / temperature).sum()
    order = np.argsort(-chances, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(chances[order]), top_p)) + 1]
    expected = np.zeros(5)
    expected[kept] = chances[kept] / chances[kept].sum()
    draws = Counter(Sampler(Sampling(temperature, top_p, seed), REQUEST).choose(scores, 3) for seed in range(num))
    found = np.array([draws[token] for token in range(5)]) / num
    assert np.all(found[expected == 0] == 0)
    # Four standard errors of a share.
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / num) + 1e-12)


def test_decisions_of_a_request_and_requests_of_a_seed_are_drawn_independently():
    scores, sampler = np.zeros(2), Sampler(Sampling(), REQUEST)
    draws = np.array([sampler.choose(scores, number) for number in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.05 and abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.1
    homes = [Sampler(Sampling(), Request(Household(f"h{n}", 2))).choose(scores, 0) for n in range(2000)]
    assert abs(np.mean(homes) - 0.5) < 0.05


def test_last_of_tokens_with_no_chance_is_never_drawn():
    scores = np.array([0.0, -1e9])
    assert {Sampler(Sampling(seed=seed), REQUEST).choose(scores, 0) for seed in range(200)} == {0}


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(ContractError, match=next(iter(values))):
        Sampling(**values)
