"""The legal tokens of known plans, against writing out every line that may come next."""

from __future__ import annotations

import pytest

from planner.contracts.catalogue import Catalogue
from planner.contracts.plan import Meal, Plan
from planner.contracts.prompt import encode_target, render_plan
from planner.contracts.request import Household, Request
from planner.decoding.targets import CatalogueTokens
from tests.decoding.test_decoder import Naive
from tests.tiny import tiny_catalogue, tiny_examples


@pytest.fixture(scope="module")
def small():
    return tiny_catalogue(14)


@pytest.fixture(scope="module")
def legal(base, small):
    return CatalogueTokens(small, base.tokenizer)


def target_of(base, small, plan, size=4):
    return encode_target(base.tokenizer, render_plan(plan, Request(Household("h", size)), small))


def test_legal_tokens_are_those_of_a_household_without_limits(base, small, legal):
    request = Request(Household("h", 4))
    naive = Naive(base.tokenizer, small, request)
    for example in tiny_examples(6, 3, catalogue=small):
        target = target_of(base, small, example.accepted_plan)
        found = legal(4, target)
        assert [ids.tolist() for ids in found] == [naive(target[:stop]) for stop in range(len(target))]
        assert any(len(ids) > 1 for ids in found) and any(len(ids) == 1 for ids in found)


def test_plan_that_repeats_a_dish_may_choose_it_again(base, small, legal):
    dish = small.recipes[0].id
    target = target_of(base, small, Plan((Meal("monday", dish, 4), Meal("friday", dish, 4))))
    found = legal(4, target)
    assert found is not None and all(token in ids for token, ids in zip(target, found, strict=True))


def test_dishes_that_are_no_longer_active_were_legal_then(base, small, legal):
    rows = [recipe.to_dict() | {"active": False} for recipe in small.recipes[:3]]
    retired = Catalogue.of([*(type(small.recipes[0]).from_dict(row) for row in rows), *small.recipes[3:]])
    target = target_of(base, small, Plan((Meal("monday", small.recipes[0].id, 4),)))
    found = CatalogueTokens(retired, base.tokenizer)(4, target)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in legal(4, target)]


def test_text_that_is_no_plan_of_the_catalogue_has_no_legal_tokens(base, small, legal):
    gone = encode_target(base.tokenizer, "Mon: (gone)\n")
    many = target_of(base, small, Plan((Meal("monday", small.recipes[0].id, 150),)))
    assert legal(4, gone) is None
    assert legal(4, many) is None
    assert legal(4, target_of(base, small, Plan((Meal("monday", small.recipes[0].id, 4),)))[:-1]) is None
