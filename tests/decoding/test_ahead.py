"""What is fed ahead of a plan: a tree whose tokens see what leads to them alone, and are kept once they are right."""

from __future__ import annotations

import pytest
import torch

from planner.contracts.request import Household, Request
from planner.decoding.ahead import Ahead
from planner.decoding.decoder import Decoder
from planner.decoding.likely import Node, Opinions
from planner.decoding.packed import PackedModel
from tests.tiny import tiny_catalogue


def test_shared_tokens_of_paths_are_fed_once():
    ahead = Ahead()
    assert ahead.grow([(1, 2, 3), (1, 2, 4), (5,)]) == [1, 2, 3, 4, 5]
    assert ahead.parents == [-1, 0, 1, 1, -1]
    assert ahead.grow([(1, 2), (5, 6)]) == [6] and ahead.parents[-1] == 4


def test_what_the_plan_contradicts_is_forgotten_and_the_rest_stays():
    ahead = Ahead()
    ahead.fill(["certain", *ahead.grow([(1, 2), (3,), (1, 4)])])
    assert ahead.states == {(): "certain", (1,): 1, (1, 2): 2, (3,): 3, (1, 4): 4}
    assert ahead.settle((1,)) == (1, [0, 1, 3])
    assert ahead.states == {(): 1, (2,): 2, (4,): 4} and ahead.parents == [-1, -1]
    assert ahead.settle((4, 7)) == (1, [1])  # 7 was never fed
    assert ahead.states == {} and ahead.parents == []


@pytest.mark.parametrize("unshared", [False, True])
def test_token_of_a_tree_has_the_state_of_its_path_alone(base, unshared):
    packed, prompt = PackedModel(base.model), [5, 9, 2, 7, 11]
    paths = [(20, 21, 22), (20, 23), (30,), (20, 21, 25, 26)]
    ahead, cache = Ahead(), packed.new_row(4)
    if unshared:
        packed.forward([(cache, prompt[:3])])
    certain = prompt[3:] if unshared else prompt
    for number, part in enumerate((paths[:2], paths[2:])):  # the tree grows while the row stands still
        tokens = [*(() if number else certain), *ahead.grow(part)]
        ahead.fill(packed.forward([(cache, tokens)], [ahead.parents])[0])
    for path in ((), *paths, (20, 21)):
        alone = packed.forward([(packed.new_row(16), [*prompt, *path])])[0][-1]
        torch.testing.assert_close(ahead.states[path], alone, atol=1e-5, rtol=1e-4)
    right, places = ahead.settle((20, 21))
    cache.keep(len(prompt), [len(prompt) + place for place in places])
    assert right == 2 and cache.length == len(prompt) + 5
    tokens = ahead.grow([(25, 27)])
    ahead.fill(packed.forward([(cache, tokens)], [ahead.parents])[0])
    assert len(tokens) == 1
    alone = packed.forward([(packed.new_row(16), [*prompt, 20, 21, 25, 27])])[0][-1]
    torch.testing.assert_close(ahead.states[25, 27], alone, atol=1e-5, rtol=1e-4)


def test_beginnings_are_likely_where_the_model_liked_their_tokens_before(base):
    catalogue = tiny_catalogue(40)
    decoder = Decoder(base.model, base.tokenizer, catalogue, decide="dish")
    moves = decoder.legal.moves(Request(Household("h", 2)))
    root, opinions = Node(0, decoder.trie.num_leaves, 0, (), 0.0), Opinions()
    assert opinions.likely(moves, [root], 8) == []
    tokens, _, _ = moves.legal_children(root.low, root.high, 0)
    logs = [-1.0 if index == 2 else -9.0 for index in range(len(tokens))]
    opinions.note(tokens.tolist(), logs)
    found = opinions.likely(moves, [root], 8)
    assert [path[0] for path in found] == [int(tokens[2])]
    assert opinions.likely(moves, [root], 0) == []


def test_beginnings_are_fed_with_the_day_and_spare_calls_without_changing_a_plan(base):
    catalogue = tiny_catalogue(144)
    requests = [Request(Household(f"h{index}", 2 + index % 3)) for index in range(8)]
    plain = Decoder(base.model, base.tokenizer, catalogue, decide="dish", guess=False, max_rows=1)
    guessing = Decoder(base.model, base.tokenizer, catalogue, decide="dish", max_rows=1)
    one, two = plain.plan(requests), guessing.plan(requests)
    assert [r.plan for r in one] == [r.plan for r in two]
    meals = sum(len(r.plan.meals) for r in two)
    assert sum(r.num_model_calls for r in two) < sum(r.num_model_calls for r in one) - meals // 2
