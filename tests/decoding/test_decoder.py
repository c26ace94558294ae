"""The decoder against a naive `generate` that may choose among all legal tokens, one at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention

from planner.contracts.catalogue import Ingredient, cents
from planner.contracts.errors import ConfigError, ContractError
from planner.contracts.plan import EMPTY_PLAN, WEEKDAYS
from planner.contracts.prompt import (
    DAY_LABELS,
    default_servings,
    encode_prompt,
    encode_target,
    parse_plan_text,
    render_plan,
    render_prompt,
)
from planner.contracts.request import Constraints, Household, Request
from planner.decoding.base import load_base
from planner.decoding.constraints import ConstraintIndex
from planner.decoding.decoder import Decoder
from planner.decoding.trie import servings_bound
from tests.tiny import tiny_catalogue, tiny_requests


class Naive:
    """Legal tokens by writing out every line that may come next, as text, and tokenising it: no trie, no walk."""

    def __init__(self, tokenizer, catalogue, request, limits=None):
        self.tokenizer, self.catalogue, self.request = tokenizer, catalogue, request
        self.limits = limits or {}  # minutes by weekday
        self.usual = default_servings(request)
        allowed = ConstraintIndex(catalogue).allowed(request)
        self.recipes = [r for r, ok in zip(catalogue.recipes, allowed.mask, strict=True) if ok]
        self.encode = lru_cache(maxsize=None)(lambda text: tokenizer.encode(text, add_special_tokens=False))
        self.continuations = lru_cache(maxsize=None)(self._continuations)

    def __call__(self, written: list[int]) -> list[int]:
        text = self.tokenizer.decode(written)
        done = text[: text.rfind("\n") + 1]
        start = len(self.encode(done))
        tail = written[start:]
        following = (tokens for tokens in self.continuations(done) if tokens[: len(tail)] == tail)
        return sorted({tokens[len(tail)] for tokens in following if len(tokens) > len(tail)})

    def _continuations(self, done: str) -> list[list[int]]:
        lines = done.splitlines()
        first = DAY_LABELS.index(lines[-1][:3]) + 1 if lines else 0
        meals = parse_plan_text(done, self.request, self.catalogue).meals
        eaten = {meal.recipe_id for meal in meals}
        budget = cents(self.request.constraints.budget)
        spent = sum((cents(self.catalogue.by_id[m.recipe_id].cost_per_serving) or 0) * m.servings for m in meals)
        found = [[self.tokenizer.eos_token_id]] if lines else []
        for day, label in list(zip(WEEKDAYS, DAY_LABELS, strict=True))[first:]:
            for recipe in self.recipes:
                if day in self.limits and not 0 < (recipe.prep_time or 10**9) <= self.limits[day]:
                    continue
                for servings in {self.usual, *range(1, servings_bound(self.usual) + 1)}:
                    price = (cents(recipe.cost_per_serving) or 0) * servings
                    if recipe.id not in eaten and (budget is None or spent + price <= budget):
                        count = "" if servings == self.usual else f" x{servings}"
                        found.append(self.encode(f"{label}: {recipe.title}{count}\n"))
        return found


def naive_plan_tokens(model, tokenizer, catalogue, request, limits=None) -> list[int]:
    prompt = encode_prompt(tokenizer, render_prompt(request, catalogue))
    naive, ids = Naive(tokenizer, catalogue, request, limits), torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=150,
        prefix_allowed_tokens_fn=lambda _, tokens: naive(tokens[len(prompt) :].tolist()),
    )
    return output[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def small():
    return tiny_catalogue(14)


@pytest.fixture(scope="module")
def requests(small):
    return tiny_requests(24, 11, catalogue=small)


@pytest.fixture(scope="module")
def naive_tokens(base, small, requests):
    decoder = Decoder(base.model, base.tokenizer, small)
    feasible = [decoder.constraints.infeasible_reason(decoder.constraints.allowed(r)) is None for r in requests]
    assert sum(feasible) >= 15
    return [
        naive_plan_tokens(base.model, base.tokenizer, small, request) if ok else None
        for request, ok in zip(requests, feasible, strict=True)
    ]


@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_plans_equal_a_naive_generate_with_brute_force_legal_tokens(base, small, requests, naive_tokens, max_rows):
    results = Decoder(base.model, base.tokenizer, small, max_rows=max_rows).plan(requests)
    for request, result, expected in zip(requests, results, naive_tokens, strict=True):
        assert result.feasible == (expected is not None)
        if expected is not None:
            assert encode_target(base.tokenizer, render_plan(result.plan, request, small)) == expected
            assert result.num_tokens == len(expected)


@pytest.mark.parametrize("limits", [{"monday": 0, "tuesday": 25, "friday": 30}, dict.fromkeys(WEEKDAYS, 25)])
def test_plans_under_limits_of_single_days_equal_a_naive_generate(base, small, requests, limits):
    decoder = Decoder(base.model, base.tokenizer, small, max_prep_time_by_day=limits)
    num_feasible = 0
    for request, result in zip(requests[:12], decoder.plan(requests[:12]), strict=True):
        naive = Naive(base.tokenizer, small, request, limits)
        assert result.feasible == bool(naive([]))
        if result.feasible:
            expected = naive_plan_tokens(base.model, base.tokenizer, small, request, limits)
            assert encode_target(base.tokenizer, render_plan(result.plan, request, small)) == expected
            num_feasible += 1
    assert num_feasible >= 4


def test_week_without_a_day_for_any_dish_is_answered_without_a_model_call(base, small):
    quickest = min(recipe.prep_time for recipe in small.recipes if recipe.active and recipe.prep_time is not None)
    limits = dict.fromkeys(WEEKDAYS, quickest - 1) | {"friday": 0}
    decoder = Decoder(base.model, base.tokenizer, small, max_prep_time_by_day=limits)
    result = decoder.plan([Request(Household("h", 2))])[0]
    assert decoder.packed.num_calls == 0 and not result.feasible and result.plan == EMPTY_PLAN
    assert result.reason.startswith("no_recipe_allowed") and result.reason.endswith("0 after max_prep_time_by_day")
    one = Decoder(base.model, base.tokenizer, small, max_prep_time_by_day=limits | {"thursday": quickest})
    assert [meal.day for meal in one.plan([Request(Household("h", 2))])[0].plan.meals] == ["thursday"]


@pytest.mark.parametrize("limits", [{"funday": 3}, {"monday": -1}, {"monday": True}, {"monday": float("nan")}])
def test_wrong_limit_of_a_day_is_refused_by_name(base, small, limits):
    with pytest.raises(ConfigError, match=f"max_prep_time_by_day.*{next(iter(limits))}"):
        Decoder(base.model, base.tokenizer, small, max_prep_time_by_day=limits)


def test_plan_does_not_depend_on_what_else_is_in_the_batch(base, small, requests):
    decoder = Decoder(base.model, base.tokenizer, small)
    together = decoder.plan(requests)
    assert [decoder.plan([request])[0].plan for request in requests] == [result.plan for result in together]
    assert list(reversed(decoder.plan(requests[::-1]))) == together


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft 0.21 with transformers 5
def test_unmerged_adapter_decodes_like_its_own_naive_generate(base_files, small, requests):
    own = load_base(base_files, device="cpu")
    torch.manual_seed(5)
    adapter = LoraConfig(
        r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(own.model, adapter).eval()
    some = [r for r in requests if r.constraints.budget is None and not r.household.restrictions][:4]
    assert len(some) == 4
    results = Decoder(model, own.tokenizer, small).plan(some)
    for request, result in zip(some, results, strict=True):
        expected = naive_plan_tokens(model, own.tokenizer, small, request)
        assert encode_target(own.tokenizer, render_plan(result.plan, request, small)) == expected


def test_model_is_called_at_most_once_a_decision_and_sees_only_wrong_guesses_in_vain(base, small, requests):
    decoder = Decoder(base.model, base.tokenizer, small, max_rows=1)
    request = next(r for r in requests if r.constraints.budget is None and not r.household.restrictions)
    decoder.plan([request])  # the shared prefix is computed here, once
    before_calls, before_tokens = decoder.packed.num_calls, decoder.packed.num_tokens
    result = decoder.plan([request])[0]
    assert decoder.packed.num_calls - before_calls == result.num_model_calls
    prompt = encode_prompt(base.tokenizer, render_prompt(request, small))
    fed = decoder.packed.num_tokens - before_tokens
    assert fed - result.num_rejected < len(prompt) + result.num_tokens
    assert result.num_model_calls <= result.num_decisions < result.num_tokens


def test_place_of_a_finished_row_goes_to_the_next_request_at_once(base, small, requests, monkeypatch):
    decoder, sizes = Decoder(base.model, base.tokenizer, small, max_rows=3), []
    decoder.plan(requests[:1])  # the shared prefix is computed here, once
    forward = decoder.packed.forward
    monkeypatch.setattr(decoder.packed, "forward", lambda rows, *more: sizes.append(len(rows)) or forward(rows, *more))
    results = decoder.plan(requests)
    assert sum(sizes) == sum(result.num_model_calls for result in results)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 3  # fewer only once nobody waits any more
    assert sizes.count(3) > len(sizes) / 2


def test_attention_of_the_model_is_as_before_after_planning(base, small, requests):
    before = base.model.config._attn_implementation
    Decoder(base.model, base.tokenizer, small).plan(requests[:2])
    assert base.model.config._attn_implementation == before


def test_plan_does_not_depend_on_how_a_kernel_lays_out_what_it_gives(base, small, requests, monkeypatch):
    expected = Decoder(base.model, base.tokenizer, small).plan(requests[:4])

    def tokens_first(*states, **options):  # as CUDA's memory-efficient kernel does
        return scaled_dot_product_attention(*states, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr("planner.decoding.packed.scaled_dot_product_attention", tokens_first)
    assert Decoder(base.model, base.tokenizer, small).plan(requests[:4]) == expected


def test_cudnn_which_prepares_itself_for_each_length_attends_no_row(base, small, requests, monkeypatch):
    allowed, before = [], torch.backends.cuda.cudnn_sdp_enabled()

    def watched(*states, **options):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return scaled_dot_product_attention(*states, **options)

    monkeypatch.setattr("planner.decoding.packed.scaled_dot_product_attention", watched)
    Decoder(base.model, base.tokenizer, small).plan(requests[:2])
    assert allowed and not any(allowed)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_impossible_request_is_answered_without_a_model_call(base, small):
    decoder = Decoder(base.model, base.tokenizer, small)
    poor = Request(Household("h", 2), constraints=Constraints(budget=0.5))
    odd = Request(Household("h", 2, (), ("moonlight-only",)))
    results = decoder.plan([poor, odd])
    assert decoder.packed.num_calls == 0
    assert [(r.plan, r.feasible, r.num_tokens, r.num_model_calls) for r in results] == [(EMPTY_PLAN, False, 0, 0)] * 2
    assert results[0].reason.startswith("budget_below_minimum") and results[1].reason.startswith("no_recipe_allowed")


def test_no_requests_give_no_results(base, small):
    assert Decoder(base.model, base.tokenizer, small).plan([]) == []


def test_previous_plan_with_recipes_that_left_the_catalogue_is_planned(base, small, requests):
    request = next(r for r in requests if r.previous_plan and r.constraints.budget is None)
    meals = tuple(replace(meal, recipe_id="gone") for meal in request.previous_plan.meals)
    request = replace(request, previous_plan=replace(request.previous_plan, meals=meals))
    assert Decoder(base.model, base.tokenizer, small).plan([request])[0].plan.meals


def test_request_longer_than_the_context_is_refused(base, small):
    names = tuple(Ingredient(f"{'ö' * 50} {index}") for index in range(3000))
    likes = tuple(f"{'ü' * 55}{index}" for index in range(30))
    request = Request(Household("h", 2, likes, ()), names, Constraints(excluded_ingredients=likes))
    with pytest.raises(ContractError, match="its text has .* tokens, and the model takes"):
        Decoder(base.model, base.tokenizer, small).plan([request])


def test_dishes_repeat_only_where_that_is_allowed(base):
    one = tiny_catalogue(1)
    request = Request(Household("h", 2))
    assert len(Decoder(base.model, base.tokenizer, one).plan([request])[0].plan.meals) == 1
    plans = [
        Decoder(base.model, base.tokenizer, one, repeats=True).plan([Request(Household("h", size))])[0].plan
        for size in range(1, 9)
    ]
    assert max(len(plan.meals) for plan in plans) > 1


def test_allowed_tokens_follow_a_prefix(base, small, requests):
    decoder = Decoder(base.model, base.tokenizer, small)
    request = requests[0]
    naive = Naive(base.tokenizer, small, request)
    tokens = naive_plan_tokens(base.model, base.tokenizer, small, request)
    for stop in range(len(tokens)):
        assert decoder.legal.after(tokens[:stop], request) == naive(tokens[:stop])
    assert decoder.legal.after(tokens, request) == []
