"""The loss among legal tokens: against all logits with the others masked, in float64; and its counts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from planner.training.adapter import adapted, trainable
from planner.training.attention import packed_attention
from planner.training.batches import num_target_tokens, pack_rows
from planner.training.config import TrainConfig
from planner.training.forward import backward_rows, row_losses
from planner.training.text import encode_rows

CONFIG = TrainConfig(model_base="tiny", lora_r=4)


def some_legal(servings, target_ids):
    """Stand-in for a catalogue's trie: every third token is forced, the others are chosen among a few."""
    found = []
    for place, token in enumerate(target_ids):
        others = [(token + 7 * k + place) % 200 for k in range(1, 2 + place % 4)] if place % 3 else []
        found.append(np.unique(np.array([token, *others], dtype=np.int64)))
    return found


@pytest.fixture
def rows(tokenizer, texts):
    encoded = encode_rows(tokenizer, texts[:6], max_tokens=512, max_overlong_share=0, legal_tokens=some_legal)
    assert encoded.num_unlisted == 0
    return encoded.rows


@pytest.fixture
def peft_model(model):
    with packed_attention(model), adapted(model, CONFIG) as peft_model:
        torch.manual_seed(1)
        for weight in trainable(peft_model).values():
            torch.nn.init.normal_(weight, std=0.1)
        yield peft_model


def reference(peft_model, rows):
    """Every row alone, all logits, minus infinity where a token is not legal, float64; forced tokens cost nothing."""
    exact = copy.deepcopy(peft_model).double()
    exact.get_base_model().set_attn_implementation("eager")
    losses = []
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.target_ids])
        logits = exact(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        mask = torch.full_like(logits, -torch.inf)
        for place, legal in enumerate(row.legal_ids or [np.arange(logits.shape[1])] * len(row.target_ids)):
            mask[place, torch.from_numpy(legal)] = 0
        target = torch.tensor(row.target_ids)
        losses.append(torch.nn.functional.cross_entropy(logits + mask, target, reduction="sum"))
    (torch.stack(losses).sum() / num_target_tokens(rows)).backward()
    found = {name: weight.grad for name, weight in trainable(exact).items()}
    return [loss.item() for loss in losses], found


@pytest.mark.parametrize("budget", [1, 10_000])
def test_loss_and_gradients_equal_masked_logits_however_the_rows_are_packed(peft_model, rows, budget):
    mixed = (replace(rows[0], legal_ids=None), *rows[1:5], replace(rows[5], legal_ids=None))
    for chosen in (rows, mixed):
        expected, gradients = reference(peft_model, chosen)
        peft_model.zero_grad()
        assert backward_rows(peft_model, chosen, micro_batch_tokens=budget) == pytest.approx(sum(expected), rel=1e-6)
        for name, gradient in gradients.items():
            found = trainable(peft_model)[name].grad
            assert (found - gradient).norm() <= 1e-5 * gradient.norm(), name
        means = [loss / len(row.scored) for loss, row in zip(expected, chosen, strict=True)]
        losses = row_losses(peft_model, chosen, micro_batch_tokens=budget)
        assert [loss.loss for loss in losses] == pytest.approx(means, rel=1e-5)


def test_only_tokens_that_leave_a_choice_count(rows):
    for row in rows:
        assert row.scored == tuple(i for i, ids in enumerate(row.legal_ids) if len(ids) > 1)
        assert 0 < len(row.scored) < len(row.target_ids)
    (pack,) = pack_rows(rows, most_tokens=100_000)
    assert len(pack.labels_N) == num_target_tokens(rows) == sum(len(row.scored) for row in rows)
    ids, mask = pack.legal
    assert mask.sum(1).min() > 1 and torch.equal(ids, ids.unique())
    assert mask[torch.arange(len(mask)), torch.searchsorted(ids, pack.labels_N)].all()


def test_rows_without_legal_tokens_are_counted_and_change_the_digest(tokenizer, texts):
    options = {"max_tokens": 512, "max_overlong_share": 0}
    plain = encode_rows(tokenizer, texts[:4], **options)
    listed = encode_rows(tokenizer, texts[:4], **options, legal_tokens=some_legal)
    none = encode_rows(tokenizer, texts[:4], **options, legal_tokens=lambda servings, ids: None)
    assert (plain.num_unlisted, listed.num_unlisted, none.num_unlisted) == (0, 0, 4)
    assert none.digest == plain.digest != listed.digest


def test_row_whose_every_token_is_forced_has_no_loss_and_no_gradient(peft_model, rows):
    row = replace(rows[0], legal_ids=tuple(np.array([token]) for token in rows[0].target_ids))
    assert backward_rows(peft_model, [row], micro_batch_tokens=1) == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in trainable(peft_model).values())
    assert row_losses(peft_model, [row], micro_batch_tokens=1)[0].loss == 0
