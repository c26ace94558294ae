from __future__ import annotations

import random

import pytest

from planner.contracts.errors import TrainingError
from planner.contracts.prompt import encode_prompt, encode_target, parse_plan_text, render_plan, render_prompt
from planner.training.text import TextRow, encode_rows, text_rows
from tests.tiny import tiny_catalogue, tiny_examples

CATALOGUE = tiny_catalogue()
EXAMPLES = tiny_examples(40)


def test_a_row_is_the_prompt_of_serving_and_the_accepted_plan():
    by_id = {example.event_id: example for example in EXAMPLES}
    for row in text_rows(EXAMPLES, CATALOGUE):
        example = by_id[row.event_id]
        assert row.prompt == render_prompt(example.request, CATALOGUE)
        assert row.target == render_plan(example.accepted_plan, example.request, CATALOGUE)
        assert parse_plan_text(row.target, example.request, CATALOGUE) == example.accepted_plan.in_week_order()


def test_the_chosen_rows_do_not_depend_on_the_order_of_the_examples():
    shuffled = random.Random(1).sample(EXAMPLES, len(EXAMPLES))
    chosen = text_rows(iter(shuffled), CATALOGUE, most=10, seed=5)
    assert chosen == text_rows(EXAMPLES, CATALOGUE, most=10, seed=5) == text_rows(EXAMPLES, CATALOGUE, seed=5)[:10]
    assert len(chosen) == 10
    assert chosen != text_rows(EXAMPLES, CATALOGUE, most=10, seed=6)


def test_more_rows_asked_for_than_there_are_gives_all():
    assert len(text_rows(EXAMPLES, CATALOGUE, most=1000)) == 40


def test_prompt_and_target_are_encoded_as_serving_encodes_them(tokenizer):
    assert tokenizer.chat_template is None  # nor is one needed: the prompt is plain text
    texts = text_rows(EXAMPLES, CATALOGUE)
    encoded = encode_rows(tokenizer, texts, max_tokens=512, max_overlong_share=0)
    for text, row in zip(texts, encoded.rows, strict=True):
        assert list(row.prompt_ids) == encode_prompt(tokenizer, text.prompt)
        assert list(row.target_ids) == encode_target(tokenizer, text.target)
        assert row.target_ids[-1] == tokenizer.eos_token_id
        assert row.target_ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(row.prompt_ids + row.target_ids[:-1]) == text.prompt + text.target


def test_a_row_that_is_too_long_is_left_out_whole_and_counted(tokenizer):
    long = TextRow("long", "word " * 600, "Mon: Soup\n")
    texts = (long, *text_rows(EXAMPLES, CATALOGUE))
    encoded = encode_rows(tokenizer, texts, max_tokens=512, max_overlong_share=0.1)
    assert encoded.num_overlong == 1
    assert encoded.rows == encode_rows(tokenizer, texts[1:], max_tokens=512, max_overlong_share=0).rows


def test_too_many_overlong_rows_fail_and_name_the_longest(tokenizer):
    long = TextRow("e-long", "word " * 600, "Mon: Soup\n")
    texts = (long, *text_rows(EXAMPLES, CATALOGUE))
    with pytest.raises(TrainingError, match=r"1 of 41 validation rows are longer than 512 tokens.*e-long.*max_tokens"):
        encode_rows(tokenizer, texts, max_tokens=512, max_overlong_share=0.02, split="validation")


def test_digest_changes_with_a_token_an_event_or_the_order(tokenizer):
    texts = text_rows(EXAMPLES, CATALOGUE)[:3]

    def digest(rows):
        return encode_rows(tokenizer, rows, max_tokens=512, max_overlong_share=0).digest

    changed = [
        texts,
        texts[::-1],
        texts[:2],
        (TextRow("other", texts[0].prompt, texts[0].target), *texts[1:]),
        (TextRow(texts[0].event_id, texts[0].prompt, texts[0].target + "Sun"), *texts[1:]),
    ]
    assert len({digest(rows) for rows in changed}) == len(changed)
    assert digest(texts) == digest(list(texts))
