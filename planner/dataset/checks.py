"""The quality checks of the contract, made on the rows that were written and not on what the build believes of them.

In: narrow columns of the finished `training.parquet`, a `Tally` over its rows, the window and the build's counts. Out:
one `CheckResult` per check.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from planner.contracts import schema
from planner.contracts.errors import DatasetCheckError
from planner.dataset.config import CHECKS, DatasetConfig, Level
from planner.dataset.counts import Counts
from planner.dataset.scan import scan
from planner.dataset.tally import Tally
from planner.dataset.window import Window


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one quality check; `level` says what a failure does, `detail` is a sentence for a person."""

    name: str
    passed: bool
    level: Level
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as in `checks.json`."""
        return asdict(self)


@dataclass(frozen=True)
class FileFacts:
    """What a finished file tells of rows that lie apart: times in microseconds since 1970, None without rows.

    `num_reversed` rows were accepted before they were generated, `num_torn` households stand in more than one split;
    `households_by_split` counts those of each split.
    """

    num_rows: int
    first_us: int | None
    last_us: int | None
    num_reversed: int
    num_events: int
    num_households: int
    num_torn: int
    households_by_split: Mapping[str, int]


def file_facts(path: Path) -> FileFacts:
    """Ask the narrow columns of the file.

    Raises:
        DatasetError: the file cannot be read.
    """
    with scan(training=path) as engine:
        # Grouped before they are counted: groups are spilled where they do not fit, distinct values are not.
        num_rows, first, last, num_reversed, num_events = engine.execute(
            """
            SELECT count(*), min(epoch_us(metadata."timestamp")), max(epoch_us(metadata."timestamp")),
                   count(*) FILTER (metadata.generated_at > metadata."timestamp"),
                   (SELECT count(*) FROM (SELECT DISTINCT metadata.event_id FROM training))
            FROM training
            """
        ).fetchall()[0]
        homes = engine.execute(
            """
            WITH homes AS (SELECT input.household.id, min(split) AS low, max(split) AS high FROM training GROUP BY 1)
            SELECT low, high, count(*) FROM homes GROUP BY ALL
            """
        ).fetchall()
    by_split: dict[str, int] = {}
    for low, high, count in homes:
        for split in {low, high}:
            by_split[split] = by_split.get(split, 0) + count
    num_torn = sum(count for low, high, count in homes if low != high)
    num_households = sum(count for *_, count in homes)
    return FileFacts(num_rows, first, last, num_reversed, num_events, num_households, num_torn, by_split)


def run_checks(
    path: Path, config: DatasetConfig, counts: Counts, facts: FileFacts, tally: Tally
) -> tuple[CheckResult, ...]:
    """Check the rows, in the order of the contract; `facts` and `tally` are of the file."""
    excluded = sum(counts.exclusions.values())
    share = excluded / counts.num_plans_seen if counts.num_plans_seen else 0.0
    shape = pq.read_schema(path).equals(schema.TRAINING_SCHEMA)
    found = row_checks(facts, tally, Window.of(config)) | {
        "min_rows": (
            facts.num_rows >= config.min_rows,
            f"{facts.num_rows:,} rows, at least {config.min_rows:,} wanted",
        ),
        "previous_plan_older": _none(counts.late_previous, "previous plans not older than plan time"),
        "pantry_not_newer": _none(counts.late_pantry, "pantry snapshots newer than plan time"),
        "excluded_share": (
            share <= config.max_excluded_share,
            f"{excluded:,} of {counts.num_plans_seen:,} accepted plans left out ({share:.2%}), at most "
            f"{config.max_excluded_share:.2%} wanted",
        ),
        "schema": (shape, "equals the contract" if shape else "differs from the contract"),
    }
    return tuple(CheckResult(name, found[name][0], config.level(name), found[name][1]) for name in CHECKS)


def row_checks(facts: FileFacts, tally: Tally, window: Window) -> dict[str, tuple[bool, str]]:
    """The checks that need the rows alone, by name: whether it passed, and a sentence for a person."""
    first, last = facts.first_us, facts.last_us
    outside = first is not None and last is not None and (first < window.start_us or last >= window.end_us)
    nulls = ", ".join(f"{count:,} in {path}" for path, count in sorted(tally.nulls.items()))
    return {
        "no_nulls": (not nulls, nulls or "no null"),
        "timestamps_in_window": (not outside, f"window {window} (exclusive)"),
        "generated_before_accepted": _none(facts.num_reversed, "rows accepted before they were generated"),
        "one_split_per_household": _none(facts.num_torn, "households in more than one split"),
        "event_ids_unique": _none(facts.num_rows - facts.num_events, "event ids that repeat"),
        "recipes_known": _none(
            tally.unknown_recipes, "meals of accepted plans with a recipe that is not in the catalogue"
        ),
    }


def require_checks(results: Collection[CheckResult], version: str, exclusions: Mapping[str, int]) -> None:
    """Stop the build if a check failed that is not lowered to a warning.

    Raises:
        DatasetCheckError: names the failed checks.
    """
    failed = [result for result in results if not result.passed and result.level == "error"]
    if failed:
        left_out = ", ".join(f"{reason} {count:,}" for reason, count in exclusions.items() if count) or "none"
        raise DatasetCheckError(
            f"Dataset {version} fails "
            + "; ".join(f"{result.name}: {result.detail}" for result in failed)
            + f" (left out: {left_out}). Nothing was published. Mend the events, widen the window, or change "
            "build_dataset in recipe.yaml (min_rows, max_excluded_share, checks: {name: warn}).",
            checks=tuple(result.name for result in failed),
        )


def _none(count: int, what: str) -> tuple[bool, str]:
    return count == 0, f"{count:,} {what}"
