from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.contracts.example import Example
from planner.evaluation.sample import sample_examples
from tests.evaluation.planners import catalogue_of, example_of

CATALOGUE = catalogue_of(8)
ROWS = [example_of(i, f"h{(i * i) % 37:02d}", CATALOGUE) for i in range(300)]
NUM_HOUSEHOLDS = len({row.household_id for row in ROWS})


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 120))
def test_the_sample_is_the_same_in_every_order_and_a_prefix_of_a_larger_one(random, size: int) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(ROWS)
    random.shuffle(shuffled)
    sample = list(sample_examples(shuffled, size))
    assert sample == list(sample_examples(ROWS, 300))[:size]


def test_a_small_sample_has_a_household_for_every_row() -> None:
    sample = list(sample_examples(ROWS, NUM_HOUSEHOLDS))
    assert len({row.household_id for row in sample}) == NUM_HOUSEHOLDS
    twice = Counter(row.household_id for row in sample_examples(ROWS, 2 * NUM_HOUSEHOLDS - 8))
    assert max(twice.values()) <= 3 and len(twice) == NUM_HOUSEHOLDS


def test_another_seed_takes_other_rows_and_no_size_takes_all_as_they_come() -> None:
    assert list(sample_examples(ROWS, 20)) != list(sample_examples(ROWS, 20, seed=1))
    assert list(sample_examples(ROWS, None)) == ROWS
    assert len(list(sample_examples(ROWS, 10**6))) == len(ROWS)


def test_a_whole_split_is_streamed() -> None:
    def endless() -> Iterator[Example]:
        while True:
            yield ROWS[0]

    assert next(sample_examples(endless(), None)) == ROWS[0]
