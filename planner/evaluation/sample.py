"""Which rows of a split are replayed: the same ones every time, from as many households as possible.

In: the split's examples as a stream. Out: a stream of the sampled examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from planner.contracts.example import Example
from planner.contracts.split import stable_order


def sample_examples(examples: Iterable[Example], size: int | None, *, seed: int = 0) -> Iterator[Example]:
    """Take `size` examples: one of each household first, then a second of each, and so on, by stable hashes.

    Args:
        examples: a stream, in any order; the sample is the same in every order.
        size: rows to take; None passes the stream through as it is.
        seed: another seed takes other rows.

    Returns:
        The sample in its own order; memory is bounded by twice the sample.
    """
    if size is None:
        yield from examples
        return
    kept: list[Example] = []
    for example in examples:
        kept.append(example)
        if len(kept) >= 2 * size + 64:
            kept = _first(kept, size, seed)
    yield from _first(kept, size, seed)


def _first(examples: list[Example], size: int, seed: int) -> list[Example]:
    """The first rows by (turn within the household, household's hash).

    What is cut here could not come back: later rows only add smaller turns, so a row's place only gets worse.
    """
    by_household: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_household[example.household_id].append(example)
    order = []
    for household, rows in by_household.items():
        rows.sort(key=lambda row: (stable_order(row.event_id, seed), row.event_id))
        place = stable_order(household, seed)
        order += [((turn, place, household), row) for turn, row in enumerate(rows)]
    order.sort(key=lambda item: item[0])
    return [row for _, row in order[:size]]
