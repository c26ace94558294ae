from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.training.batches import epoch_order, num_target_tokens, pack_rows, rows_of_step, steps_per_epoch
from planner.training.text import EncodedRow

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), min_size=1, max_size=20)


def rows_of(lengths):
    return [
        EncodedRow(f"e{i}", tuple(range(100, 100 + p)), tuple(range(500, 500 + t))) for i, (p, t) in enumerate(lengths)
    ]


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3))
def test_every_row_is_in_one_step_of_each_epoch(lengths, batch_size, epoch):
    rows = rows_of(lengths)
    order = epoch_order(len(rows), seed=7, epoch=epoch)
    steps = [rows_of_step(rows, order, i, batch_size) for i in range(steps_per_epoch(len(rows), batch_size))]
    assert sorted(row.event_id for step in steps for row in step) == sorted(row.event_id for row in rows)
    assert all(len(step) == batch_size for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= batch_size


def test_order_is_a_function_of_seed_and_epoch_alone():
    assert epoch_order(8, seed=0, epoch=1) == [5, 3, 6, 2, 4, 1, 0, 7]
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(LENGTHS, st.integers(1, 80))
def test_packs_hold_all_tokens_without_padding(lengths, most_tokens):
    rows = rows_of(lengths)
    packs = pack_rows(rows, most_tokens=most_tokens)
    assert sorted(row.event_id for pack in packs for row in pack.rows) == sorted(row.event_id for row in rows)
    for pack in packs:
        shared = pack.num_shared
        assert shared == (min(len(row.prompt_ids) for row in pack.rows) - 1 if len(pack.rows) > 1 else 0)
        own = [token for row in pack.rows for token in (row.prompt_ids + row.target_ids)[shared:]]
        ids = [*pack.rows[0].prompt_ids[:shared], *own]
        assert pack.ids_1T.tolist() == [ids]
        places = [p for row in pack.rows for p in range(shared, row.num_tokens)]
        assert pack.positions_1T.tolist() == [[*range(shared), *places]]
        assert shared + sum(pack.lengths) == len(ids)
        assert len(pack.rows) == 1 or len(ids) <= most_tokens


def test_the_longest_rows_come_first_and_the_others_fill_the_packs():
    packs = pack_rows(rows_of([(50, 10), (20, 5), (60, 9), (31, 4)]), most_tokens=104)
    assert [[row.num_tokens for row in pack.rows] for pack in packs] == [[69, 35], [60, 25]]


@given(LENGTHS)
def test_labels_are_the_targets_and_each_is_predicted_from_the_token_before_it(lengths):
    (pack,) = pack_rows(rows_of(lengths), most_tokens=10**6)
    rows = pack.rows
    assert pack.labels_N.tolist() == [token for row in rows for token in row.target_ids]
    assert len(pack.labels_N) == num_target_tokens(rows)
    assert pack.ids_1T[0][pack.source_N + 1].tolist() == pack.labels_N.tolist()
    # The first target of a row is predicted from the last token of its own prompt.
    assert pack.positions_1T[0][pack.source_N].tolist() == [
        len(row.prompt_ids) - 1 + i for row in rows for i in range(len(row.target_ids))
    ]


def test_prompts_that_differ_from_the_first_token_share_nothing():
    one, two, three = rows_of([(5, 2), (7, 3), (9, 1)])
    other = EncodedRow("x", (7, *one.prompt_ids), one.target_ids)
    assert pack_rows([one, other], most_tokens=100)[0].num_shared == 0
    assert pack_rows([two, three], most_tokens=100)[0].num_shared == 6
    assert (
        pack_rows([two, EncodedRow("y", two.prompt_ids[:4] + (1, 2, 3, 4), (8,))], most_tokens=100)[0].num_shared == 4
    )
