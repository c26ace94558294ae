"""Build a dataset version: one row per accepted plan, from one snapshot of the database.

In: a database URL and a window. Out: an immutable version under `<datasets>/planner/`, and a report. The rows are a
function of the database's state and the config alone; nothing is written to the database.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatasetError
from planner.contracts.example import DatasetVersion
from planner.dataset import publish, s3, versions
from planner.dataset.checks import BuildCounts, CheckResult, require_checks, run_checks
from planner.dataset.config import DatasetConfig
from planner.dataset.database import connect, query_error, require_tables
from planner.dataset.keys import KeyCounts, Window, event_range, load_keys
from planner.dataset.rows import Assembly, iter_batches
from planner.dataset.summary import Profile, profile_of, summary_text
from planner.dataset.write import described_schema, num_leaf_fields, read_recipes, write_recipes, write_training

Progress = Callable[[int, int | None, str], None]
_MODEL = "planner_model"


@dataclass(frozen=True)
class BuildReport:
    """What a build did; `num_plans_seen` counts the accepted plans of the window, rows and exclusions together.

    `unchanged` means that the version was there already with these very rows; `notes` counts what was mended or left
    out inside rows.
    """

    version: DatasetVersion
    num_rows: int
    rows_by_split: Mapping[str, int]
    num_households: int
    exclusions: Mapping[str, int]
    checks: tuple[CheckResult, ...]
    unchanged: bool
    seconds: float
    num_plans_seen: int
    notes: Mapping[str, int]


@dataclass(frozen=True)
class _Content:
    """The files of a build in its working folder, before they are published."""

    profile: Profile
    counts: KeyCounts
    exclusions: Mapping[str, int]
    checks: tuple[CheckResult, ...]
    notes: Mapping[str, int]
    manifest: Mapping[str, Any]


def build_dataset(
    url: str,
    config: DatasetConfig,
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    at_boundary: Callable[[str], None] = lambda name: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> BuildReport:
    """Build the version that the config names, or verify it where it exists with the same rows.

    Args:
        url: the database; read in one snapshot, never written to.
        config: the window, the place and the checks.
        progress: told rows done, rows in all, and what is being done.
        cache: for versions on S3: where they are built and kept by `open_version`.
        at_boundary: told the name of each step after it was written; for tests that kill the build there.
        now: the clock of `created_at`.

    Raises:
        DatabaseError: the database cannot be read.
        CatalogueError: two recipes share a title.
        DatasetCheckError: a quality check failed; nothing was published.
        DatasetError: the window is empty, the place cannot be written, or the version exists with other rows.
    """
    began = time.monotonic()
    root = config.datasets.rstrip("/") or "/"
    uri = f"{root}/planner/{config.version}" if s3.is_s3(root) else str(_local(root, config.version))
    cache = cache or versions.DEFAULT_CACHE
    with _workplace(root, config.version, cache) as folder:
        content = _write_content(url, config, folder, progress or _silent, at_boundary, now)
        version, unchanged = _publish(folder, uri, content.manifest, at_boundary, cache)
    return BuildReport(
        version=version,
        num_rows=content.profile.num_rows,
        rows_by_split=content.profile.rows_by_split,
        num_households=content.profile.num_households,
        exclusions=content.exclusions,
        checks=content.checks,
        unchanged=unchanged,
        seconds=time.monotonic() - began,
        num_plans_seen=content.counts.num_plans_seen,
        notes=content.notes,
    )


def _silent(done: int, total: int | None, what: str) -> None:
    pass


def _local(root: str, version: str) -> Path:
    return Path(root).absolute() / "planner" / version


@contextlib.contextmanager
def _workplace(root: str, version: str, cache: Path) -> Iterator[Path]:
    """A working folder, after a look whether the version could be written at all."""
    if s3.is_s3(root):
        s3.probe(f"{root}/planner")
        parent = cache / "building"
    else:
        parent = _local(root, version).parent
        target = parent / version
        if target.is_symlink() or (target.exists() and not (target / versions.MANIFEST).is_file()):
            raise DatasetError(
                f"{target} is in the way: it is no dataset version. Remove it, or give the version another name "
                "(build_dataset.date).",
                folder=target,
            )
    with publish.working_folder(parent, version) as folder:
        yield folder


def _write_content(
    url: str,
    config: DatasetConfig,
    folder: Path,
    progress: Progress,
    at_boundary: Callable[[str], None],
    now: Callable[[], datetime],
) -> _Content:
    progress(0, None, "read the database")
    window = Window.of(config)
    training, spill = folder / versions.TRAINING, folder / "spill"
    assembly = Assembly()
    with contextlib.closing(connect(url, read_only=True)) as connection:
        # One snapshot for every query of the build: rows that arrive meanwhile do not exist.
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        try:
            require_tables(connection)
            recipes, catalogue, recipe_notes = read_recipes(connection)
            keys, counts = load_keys(connection, window, spill)
            with contextlib.closing(keys), contextlib.ExitStack() as stack:
                stack.callback(shutil.rmtree, spill, ignore_errors=True)
                total = counts.num_candidates
                batches = iter_batches(connection, keys, catalogue.by_id, assembly)
                num_rows = write_training(training, batches, written=lambda done: progress(done, total, "write rows"))
            exclusions = {**counts.exclusions, "invalid_plan": assembly.invalid_plans}
            if num_rows == 0:
                raise _empty_window(connection, config, exclusions)
        except psycopg2.Error as error:
            raise query_error(error, "building the dataset") from None
    at_boundary(versions.TRAINING)
    write_recipes(folder / versions.RECIPES, recipes)
    at_boundary(versions.RECIPES)
    progress(num_rows, num_rows, "check")
    build_counts = BuildCounts(counts.num_plans_seen, exclusions, assembly.late_previous, assembly.late_pantry)
    checks = run_checks(training, config, build_counts, catalogue.by_id)
    require_checks(checks, config.version, exclusions)
    notes = dict(assembly.notes + recipe_notes)
    notes |= {what: count for what, count in _event_notes(counts).items() if count}
    profile = profile_of(training)
    summary = summary_text(
        config,
        profile,
        size=training.stat().st_size,
        num_fields=num_leaf_fields(),
        exclusions=exclusions,
        num_plans_seen=counts.num_plans_seen,
        checks=checks,
        notes=notes,
    )
    created_at = now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    described = {
        "version": config.version,
        "model": _MODEL,
        "created_at": created_at,
        "fields": described_schema(),
    }
    texts = {
        versions.SUMMARY: summary.encode(),
        versions.CHECKS: versions.encode_json({"checks": [check.to_dict() for check in checks]}),
        versions.SCHEMA: versions.encode_json(described),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text)
        at_boundary(name)
    manifest = versions.make_manifest(
        folder, version=config.version, rows=num_rows, created_at=created_at, parameters=_parameters(config)
    )
    return _Content(profile, counts, exclusions, checks, notes, manifest)


def _publish(
    folder: Path, uri: str, manifest: Mapping[str, Any], at_boundary: Callable[[str], None], cache: Path
) -> tuple[DatasetVersion, bool]:
    """Publish the folder, or compare it with the version that is there."""
    if s3.is_s3(uri):
        if s3.read_manifest(uri) is None and s3.publish(folder, uri, manifest, _seal, at_boundary):
            at_boundary("published")
            return versions.open_version(uri, cache=cache), False
        return _same_as_existing(uri, manifest, cache), True
    target = Path(uri)
    if not target.exists():
        (folder / versions.MANIFEST).write_bytes(versions.encode_json(manifest))
        at_boundary(versions.MANIFEST)
        if publish.publish_folder(folder, target):
            at_boundary("published")
            return versions.verify_folder(target, uri=uri), False
    return _same_as_existing(uri, manifest, cache), True


def _same_as_existing(uri: str, manifest: Mapping[str, Any], cache: Path) -> DatasetVersion:
    existing = versions.open_version(uri, cache=cache)
    if existing.digest != manifest["digest"]:
        changed = [
            f"{name} {existing.manifest['parameters'].get(name)} then, {value} now"
            for name, value in manifest["parameters"].items()
            if existing.manifest["parameters"].get(name) != value
        ]
        raise DatasetError(
            f"The dataset {existing.name} exists at {uri} with other rows: {existing.num_rows:,} rows and digest "
            f"{existing.digest} then, {manifest['rows']:,} rows and digest {manifest['digest']} now"
            + (f" ({'; '.join(changed)})" if changed else "")
            + ". A version never changes: give the new one another name (build_dataset.date).",
            uri=uri,
            rows_then=existing.num_rows,
            rows_now=manifest["rows"],
        )
    return existing


def _empty_window(connection: Connection, config: DatasetConfig, exclusions: Mapping[str, int]) -> DatasetError:
    first, last = event_range(connection)
    window = f"from {config.start_date} to {config.end_date} (exclusive, UTC)"
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in exclusions.items() if count)
    if first is None or last is None:
        there = "The database holds no accepted plans at all: load events first."
    elif left_out:
        there = f"All accepted plans of the window were left out: {left_out}. Mend the events."
    else:
        there = f"Accepted plans exist from {first:%Y-%m-%d} to {last:%Y-%m-%d}: set start_date and end_date there."
    return DatasetError(f"There is no row {window}. {there}", start=config.start_date, end=config.end_date)


def _event_notes(counts: KeyCounts) -> dict[str, int]:
    return {
        "events of the window whose payload has no text `plan_id` (no plan: left out)": counts.events_without_plan_id,
        "events dated before the year 1 or at minus infinity (left out)": counts.events_without_time,
    }


def _parameters(config: DatasetConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"datasets", "date"})


def _seal(manifest: Mapping[str, Any]) -> bytes:
    return versions.encode_json(versions.sealed(manifest))
