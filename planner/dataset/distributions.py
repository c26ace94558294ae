"""How the rows of a version are distributed: for the profile card, and for the shifts between two versions.

In: a `Tally` over the rows. Out: counts by name and label.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from planner.contracts.example import DatasetVersion
from planner.dataset.tally import TIGHTNESS, Tally, tally_file

# The largest number of each bin; one more bin holds what is over the last.
_ITEMS, _EDITS, _EXCLUDED = (0, 5, 10, 20, 40), (0, 2, 5, 9), (0, 1, 2, 3)


@dataclass(frozen=True)
class Distribution:
    """Counts by label, in the order to show them; `of` says what is counted: `rows` or `meals`."""

    name: str
    of: str
    counts: Mapping[str, int]

    def share(self, label: str) -> float:
        """Share in [0, 1] of a label; 0 where it does not occur."""
        total = sum(self.counts.values())
        return self.counts.get(label, 0) / total if total else 0.0


def distributions_of(tally: Tally, titles: Mapping[str, str]) -> Mapping[str, Distribution]:
    """Label what was counted; texts that a site chose (workflow types, dishes) by falling count, bins in their order.

    Keys: `workflow type`, `mode`, `split`, `meals a plan`, `edits a plan`, `pantry items`, `dish`, `budget used`,
    `minutes used`, `excluded ingredients`, `day`. `budget used` is the accepted plan's cost (cents, by the version's
    catalogue) against the budget, `minutes used` its longest dish against the limit; `unknown` where a dish has no
    cost or time, or has left the catalogue.

    Args:
        tally: over the rows.
        titles: of the catalogue's recipes, by id.
    """
    counts = tally.counts
    found = [
        *(Distribution(name, "rows", by_count(counts[name])) for name in ("workflow type", "mode", "split")),
        Distribution("meals a plan", "rows", _binned(counts["meals a plan"], range(1, 8))),
        Distribution("edits a plan", "rows", _ranged(counts["edits a plan"], _EDITS)),
        Distribution("pantry items", "rows", _ranged(counts["pantry items"], _ITEMS)),
        Distribution("excluded ingredients", "rows", _ranged(counts["excluded ingredients"], _EXCLUDED)),
        Distribution("dish", "meals", {titles.get(id_, id_): n for id_, n in by_count(counts["dish"]).items()}),
        *(
            Distribution(name, "rows", {label: counts[name].get(label, 0) for label in TIGHTNESS})
            for name in ("budget used", "minutes used")
        ),
        Distribution("day", "rows", {_date(day): counts["day"][day] for day in sorted(counts["day"])}),
    ]
    return {distribution.name: distribution for distribution in found}


def version_distributions(version: DatasetVersion) -> Mapping[str, Distribution]:
    """Those of a finished version, read back from its files.

    Raises:
        DatasetError: a file cannot be read.
    """
    tally = tally_file(version.training_path, version.recipes_path)
    titles = pq.read_table(version.recipes_path, columns=["id", "title"]).to_pylist()
    return distributions_of(tally, {row["id"]: row["title"] for row in titles})


def by_count(counts: Mapping[Any, int]) -> dict[Any, int]:
    """The most frequent first, equally frequent ones in their order, None last of them."""
    order = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0] is None, entry[0] or ""))
    return dict(order)


def _binned(counts: Counter[int], bins: Sequence[int]) -> dict[str, int]:
    """Counts in the order of the bins; numbers of no bin follow in their own order."""
    return {str(number): counts.get(number, 0) for number in [*bins, *sorted(counts.keys() - set(bins))]}


def _ranged(counts: Counter[int], tops: tuple[int, ...]) -> dict[str, int]:
    lows = (0, *(top + 1 for top in tops))
    labels = [str(top) if low == top else f"{low} to {top}" for low, top in zip(lows, tops, strict=False)]
    found = dict.fromkeys([*labels, f"{lows[-1]} or more"], 0)
    for number, count in counts.items():
        found[list(found)[int(np.searchsorted(tops, number))]] += count
    return found


def _date(days: int) -> str:
    return (dt.date(1970, 1, 1) + dt.timedelta(days=days)).isoformat()
