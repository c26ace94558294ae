"""The quality checks of the contract, made on the finished file and not on what the build believes it wrote.

In: `training.parquet`, the window and the build's counts. Out: one `CheckResult` per check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts import schema
from planner.contracts.errors import DatasetCheckError
from planner.dataset.config import CHECKS, DatasetConfig, Level
from planner.dataset.keys import Window
from planner.dataset.scan import scan
from planner.dataset.write import NULLABLE


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
class BuildCounts:
    """What only the build can know: `late_*` count joins that saw the future."""

    num_plans_seen: int
    exclusions: Mapping[str, int]
    late_previous: int
    late_pantry: int


def run_checks(
    path: Path, config: DatasetConfig, counts: BuildCounts, known_recipes: Collection[str]
) -> tuple[CheckResult, ...]:
    """Check the file, in the order of the contract."""
    rows, excluded = pq.read_metadata(path).num_rows, sum(counts.exclusions.values())
    share = excluded / counts.num_plans_seen if counts.num_plans_seen else 0.0
    shape = pq.read_schema(path).equals(schema.TRAINING_SCHEMA)
    found = file_checks(path, Window.of(config), known_recipes) | {
        "min_rows": (rows >= config.min_rows, f"{rows:,} rows, at least {config.min_rows:,} wanted"),
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


def file_checks(path: Path, window: Window, known_recipes: Collection[str]) -> dict[str, tuple[bool, str]]:
    """The checks that need the file alone, by name: whether it passed, and a sentence for a person."""
    facts = _facts(path)
    nulls, unknown = _walk(path, set(known_recipes))
    outside = (facts["first"] or window.start_us) < window.start_us or (facts["last"] or 0) >= window.end_us
    return {
        "no_nulls": (not nulls, ", ".join(f"{n:,} in {p}" for p, n in sorted(nulls.items())) or "no null"),
        "timestamps_in_window": (not outside, f"window {window} (exclusive)"),
        "generated_before_accepted": _none(facts["reversed"], "rows accepted before they were generated"),
        "one_split_per_household": _none(facts["torn_households"], "households in more than one split"),
        "event_ids_unique": _none(facts["num_rows"] - facts["num_events"], "event ids that repeat"),
        "recipes_known": _none(unknown, "meals of accepted plans with a recipe that is not in the catalogue"),
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


def _facts(path: Path) -> dict[str, int]:
    with scan(rows=path) as engine:
        row = engine.execute(
            """
            SELECT count(*), min(epoch_us(metadata."timestamp")), max(epoch_us(metadata."timestamp")),
                   count(*) FILTER (metadata.generated_at > metadata."timestamp"),
                   (SELECT count(*) FROM (SELECT DISTINCT metadata.event_id FROM rows)),
                   (SELECT count(*) FROM (SELECT input.household.id FROM rows GROUP BY ALL
                                          HAVING min(split) <> max(split)))
            FROM rows
            """
        ).fetchall()[0]
    names = ("num_rows", "first", "last", "reversed", "num_events", "torn_households")
    return dict(zip(names, row, strict=True))


def _walk(path: Path, known_recipes: set[str]) -> tuple[Counter[str], int]:
    """Nulls by path in fields that the contract requires, and the number of meals with an unknown recipe."""
    nulls: Counter[str] = Counter()
    unknown = 0
    with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=4096):
            for field, column in zip(batch.schema, batch.columns, strict=True):
                _count_nulls(column, field.name, nulls)
            accepted = batch.column("target").field("accepted_plan").field("meals").flatten()
            counts = accepted.field("recipe_id").value_counts().to_pylist()
            unknown += sum(entry["counts"] for entry in counts if entry["values"] not in known_recipes)
    return nulls, unknown


def _count_nulls(values: pa.Array, path: str, nulls: Counter[str]) -> None:
    if values.null_count:
        if path not in NULLABLE:
            nulls[path] += values.null_count
        values = values.drop_null()
    if pa.types.is_struct(values.type):
        for index, field in enumerate(values.type):
            _count_nulls(values.field(index), f"{path}.{field.name}", nulls)
    elif pa.types.is_list(values.type):
        _count_nulls(values.flatten(), f"{path}.element", nulls)
