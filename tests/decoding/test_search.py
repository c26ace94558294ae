"""Deciding whole dishes, against a brute force that scores every legal dish with plain forward passes."""

from __future__ import annotations

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
from planner.decoding.decoder import Decoder
from planner.evaluation.verify import violations
from tests.decoding.test_decoder import Naive
from tests.tiny import tiny_catalogue, tiny_requests


@pytest.fixture(scope="module")
def small():
    return tiny_catalogue(14)


@pytest.fixture(scope="module")
def requests(small):
    return tiny_requests(16, 11, catalogue=small)


class BruteForce:
    """A plan by the definition: no trie, no cache, no search; every dish that may come next gets its probability."""

    def __init__(self, model, tokenizer, catalogue, request):
        self.model, self.tokenizer, self.catalogue, self.request = model, tokenizer, catalogue, request
        self.prompt = encode_prompt(tokenizer, render_prompt(request, catalogue))
        self.naive = Naive(tokenizer, catalogue, request)
        self.next_logs = lru_cache(maxsize=None)(self._next_logs)

    def plan_tokens(self) -> list[int]:
        written, going_on, end = [], 1.0, self.tokenizer.eos_token_id
        while not written or written[-1] != end:
            legal = self.next_logs(tuple(written))
            if self.before_a_title(written):
                written += self.best_dish(written)
                continue
            if end in legal and len(legal) > 1:
                going_on *= 1 - legal[end].exp().item()
                legal = {end: legal[end]} if going_on < 0.5 else {k: v for k, v in legal.items() if k != end}
            written.append(max(legal, key=lambda token: legal[token].item()))
        return written

    def before_a_title(self, written) -> bool:
        return self.tokenizer.decode(written).rpartition("\n")[2] in {f"{label}:" for label in DAY_LABELS}

    def best_dish(self, written) -> list[int]:
        text = self.tokenizer.decode(written)
        done = text[: text.rfind("\n") + 1]
        start = len(self.naive.encode(done))
        begun = written[start:]
        lines = [tokens for tokens in self.naive.continuations(done) if tokens[: len(begun)] == begun]
        dish_of = {tuple(tokens): self.dish_of(tokens) for tokens in lines}
        best = (-torch.inf, [])
        for dish in set(dish_of.values()):
            own = [tokens for tokens in lines if dish_of[tuple(tokens)] == dish]
            depth = len(begun)
            # The tokens that name the dish: as far as others than its own lines go the same way.
            while any(t[:depth] == own[0][:depth] and dish_of[tuple(t)] != dish for t in lines):
                depth += 1
            path = own[0][len(begun) : depth]
            score = sum(self.next_logs((*written, *path[:i]))[token].item() for i, token in enumerate(path))
            best = max(best, (score, path))
        return best[1]

    def dish_of(self, line_tokens) -> str:
        return parse_plan_text(self.tokenizer.decode(line_tokens), self.request, self.catalogue).meals[0].recipe_id

    def _next_logs(self, written):
        legal = self.naive(list(written))
        with torch.no_grad():
            logits = self.model(torch.tensor([[*self.prompt, *written]])).logits[0, -1, legal]
        return dict(zip(legal, torch.log_softmax(logits.double(), 0), strict=True))


def test_each_dish_is_the_likeliest_whole_one_and_the_length_is_the_median(base, small, requests):
    results = Decoder(base.model, base.tokenizer, small, decide="dish").plan(requests)
    assert sum(result.feasible for result in results) >= 10
    lengths = set()
    for request, result in zip(requests, results, strict=True):
        if result.feasible:
            expected = BruteForce(base.model, base.tokenizer, small, request).plan_tokens()
            assert encode_target(base.tokenizer, render_plan(result.plan, request, small)) == expected
            assert result.num_tokens == len(expected)
            lengths.add(len(result.plan.meals))
        else:
            assert result.plan == EMPTY_PLAN
    assert len(lengths) > 1


def test_deciding_dishes_differs_from_deciding_tokens_and_repeats_no_dish(base, catalogue):
    requests = tiny_requests(30, 6, catalogue=catalogue)
    by_dish = [r.plan for r in Decoder(base.model, base.tokenizer, catalogue, decide="dish").plan(requests)]
    by_token = [r.plan for r in Decoder(base.model, base.tokenizer, catalogue).plan(requests)]
    assert by_dish != by_token
    assert all(len(plan.recipe_ids) == len(plan.meals) for plan in by_dish)


@pytest.mark.parametrize("max_rows", [1, 3])
@pytest.mark.parametrize("guess", [True, False])
def test_plans_by_dish_depend_on_neither_the_batch_nor_the_guesses(base, small, requests, max_rows, guess):
    expected = [r.plan for r in Decoder(base.model, base.tokenizer, small, decide="dish").plan(requests)]
    decoder = Decoder(base.model, base.tokenizer, small, decide="dish", max_rows=max_rows, guess=guess)
    assert [r.plan for r in decoder.plan(requests)] == expected
    assert [r.plan for r in decoder.plan(requests[::-1])] == expected[::-1]


def test_no_plan_by_dish_violates_a_constraint(base, catalogue):
    requests = tiny_requests(60, 5, catalogue=catalogue)
    results = Decoder(base.model, base.tokenizer, catalogue, decide="dish").plan(requests)
    assert [violations(r.plan, request, catalogue) for request, r in zip(requests, results, strict=True)] == [()] * 60
    assert sum(r.feasible for r in results) > 40
