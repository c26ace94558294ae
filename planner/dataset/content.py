"""What a build writes into its working folder: the files of a version, from one snapshot of the database.

In: database URLs, the config, an empty folder. Out: the files, and what was counted on the way. Publishing them is
`build.py`'s work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import DatasetError
from planner.dataset import versions
from planner.dataset.card import card_html
from planner.dataset.checks import CheckResult, file_facts, require_checks, run_checks
from planner.dataset.collect import Progress
from planner.dataset.config import DatasetConfig
from planner.dataset.counts import Counts
from planner.dataset.database import connect, index_warning, query_error, require_tables, unindexed_tables
from planner.dataset.distributions import Distribution, distributions_of
from planner.dataset.gather import gather
from planner.dataset.merge import RowsDifferError
from planner.dataset.reuse import Earlier, Reuse, find_earlier, reuse_of
from planner.dataset.rows import system_memory
from planner.dataset.sources import SourceState, source_state
from planner.dataset.summary import Profile, profile_of, summary_text
from planner.dataset.tally import Tally
from planner.dataset.write import described_schema, num_leaf_fields, read_recipes, write_recipes

_MODEL = "planner_model"


@dataclass(frozen=True)
class Content:
    """The files of a build in its working folder, before they are published."""

    profile: Profile
    num_plans_seen: int
    exclusions: Mapping[str, int]
    checks: tuple[CheckResult, ...]
    notes: Mapping[str, int]
    manifest: Mapping[str, Any]
    reuse: Reuse
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """What was counted while the rows were written."""

    catalogue: Catalogue
    tally: Tally
    counts: Counts
    notes: Mapping[str, int]
    state: SourceState
    reuse: Reuse
    warnings: tuple[str, ...]


def write_content(
    urls: Sequence[str],
    config: DatasetConfig,
    folder: Path,
    *,
    progress: Progress,
    at_boundary: Callable[[str], None],
    now: Callable[[], datetime],
    cache: Path,
) -> Content:
    """Write every file of the version but the manifest, which is returned; the checks run on the finished rows.

    Raises:
        DatabaseError, CatalogueError, DatasetCheckError, DatasetError: as `build_dataset`.
    """
    progress(0, None, "read the database")
    read = _write_rows(urls, config, folder, progress, at_boundary, cache)
    progress(read.counts.num_rows, read.counts.num_rows, "check")
    training = folder / versions.TRAINING
    facts = file_facts(training)
    checks = run_checks(training, config, read.counts, facts, read.tally)
    require_checks(checks, config.version, read.counts.exclusions)
    profile = profile_of(read.tally, facts)
    titles = {recipe.id: recipe.title for recipe in read.catalogue.by_id.values()}
    distributions = distributions_of(read.tally, titles)
    created_at = now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, text in _texts(config, folder, read, profile, distributions, checks, created_at).items():
        (folder / name).write_bytes(text)
        at_boundary(name)
    manifest = versions.make_manifest(
        folder,
        version=config.version,
        rows=read.counts.num_rows,
        created_at=created_at,
        parameters=config.parameters,
        num_plans_seen=read.counts.num_plans_seen,
        exclusions=read.counts.exclusions,
        source={
            **read.state.to_dict(),
            "reused": {"version": read.reuse.version, "digest": read.reuse.digest, "rows": read.reuse.num_rows},
        },
    )
    seen = read.counts.num_plans_seen
    return Content(profile, seen, read.counts.exclusions, checks, read.notes, manifest, read.reuse, read.warnings)


def _write_rows(
    urls: Sequence[str],
    config: DatasetConfig,
    folder: Path,
    progress: Progress,
    at_boundary: Callable[[str], None],
    cache: Path,
) -> _Read:
    with system_memory(), contextlib.closing(connect(urls[0], read_only=True)) as connection:
        # One snapshot for every query of the build: rows that arrive meanwhile do not exist.
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        try:
            require_tables(connection)
            warnings = tuple(map(index_warning, unindexed_tables(connection)))
            recipes, catalogue, recipe_notes = read_recipes(connection)
            state = source_state(connection)
            if len(urls) > 1:
                state = replace(state, problem="it was read from several servers")
            earlier, told = find_earlier(config, state, catalogue.by_id, cache)
            known, tally = catalogue.by_id, Tally(recipes)
            try:
                counts = gather(connection, urls, config, folder, known, earlier, tally.add, progress)
            except RowsDifferError as error:
                told, earlier, tally = _differ(earlier, error), None, Tally(recipes)
                counts = gather(connection, urls, config, folder, known, None, tally.add, progress)
            if counts.num_rows == 0:
                raise _empty_window(connection, config, counts.exclusions)
        except psycopg2.Error as error:
            raise query_error(error, "building the dataset") from None
    at_boundary(versions.TRAINING)
    at_boundary(versions.SOURCES)
    write_recipes(folder / versions.RECIPES, recipes)
    at_boundary(versions.RECIPES)
    reuse = reuse_of(earlier, counts, told)
    notes = dict(counts.notes + recipe_notes)
    notes |= {what: count for what, count in _event_notes(counts, reuse).items() if count}
    return _Read(catalogue, tally, counts, notes, state, reuse, warnings)


def _differ(earlier: Earlier | None, error: RowsDifferError) -> str:
    name = earlier.version.name if earlier else ""
    return (
        f"Nothing was taken from {name}: the row of event {error} is another one there, though nobody seems to have "
        "written its sources since. Was the database put back to an older copy?"
    )


def _texts(
    config: DatasetConfig,
    folder: Path,
    read: _Read,
    profile: Profile,
    distributions: Mapping[str, Distribution],
    checks: tuple[CheckResult, ...],
    created_at: str,
) -> dict[str, bytes]:
    """The files for people and programs beside the rows; only `schema.json` knows the time."""
    training = folder / versions.TRAINING
    summary = summary_text(
        config,
        profile,
        size=training.stat().st_size,
        num_fields=num_leaf_fields(),
        exclusions=read.counts.exclusions,
        num_plans_seen=read.counts.num_plans_seen,
        checks=checks,
        notes=read.notes,
    )
    card = card_html(
        config,
        profile,
        distributions,
        exclusions=read.counts.exclusions,
        num_plans_seen=read.counts.num_plans_seen,
        checks=checks,
    )
    described = {
        "version": config.version,
        "model": _MODEL,
        "created_at": created_at,
        "fields": described_schema(),
    }
    return {
        versions.SUMMARY: summary.encode(),
        versions.CARD: card.encode(),
        versions.CHECKS: versions.encode_json({"checks": [check.to_dict() for check in checks]}),
        versions.SCHEMA: versions.encode_json(described),
    }


def _empty_window(connection: Connection, config: DatasetConfig, exclusions: Mapping[str, int]) -> DatasetError:
    first, last = _event_range(connection)
    window = f"from {config.start_date} to {config.end_date} (exclusive, UTC)"
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in exclusions.items() if count)
    if first is None or last is None:
        there = "The database holds no accepted plans at all: load events first."
    elif left_out:
        there = f"All accepted plans of the window were left out: {left_out}. Mend the events."
    else:
        there = f"Accepted plans exist from {first:%Y-%m-%d} to {last:%Y-%m-%d}: set start_date and end_date there."
    return DatasetError(f"There is no row {window}. {there}", start=config.start_date, end=config.end_date)


def _event_notes(counts: Counts, reuse: Reuse) -> dict[str, int]:
    return {
        "events of the window whose payload has no text `plan_id` (no plan: left out)": counts.events_without_plan_id,
        "events dated before the year 1 or at minus infinity (left out)": counts.events_without_time,
        f"rows taken as they are from the version {reuse.version}, whose notes count what was mended in them": (
            reuse.num_rows
        ),
    }


def _event_range(connection: Connection) -> tuple[datetime | None, datetime | None]:
    """Times of the first and the last acceptance of any household plan."""
    with connection.cursor() as cursor:
        cursor.execute(
            'SELECT min("timestamp"), max("timestamp") FROM exp.events WHERE unit_type = \'household\' '
            "AND event_type = 'plan_accepted' AND \"timestamp\" >= '0001-01-01' AND \"timestamp\" < '9999-12-31'"
        )
        row = cursor.fetchone()
    return row if row is not None else (None, None)
