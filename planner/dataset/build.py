"""Build a dataset version: one row per accepted plan, from one snapshot of the database.

In: a database URL and a window. Out: an immutable version under `<datasets>/planner/`, and a report. The rows are a
function of the database's state and the config alone; nothing is written to the database.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from planner.contracts.errors import DatasetError
from planner.contracts.example import DatasetVersion
from planner.dataset import publish, s3, versions
from planner.dataset.checks import CheckResult
from planner.dataset.collect import Progress
from planner.dataset.config import DatasetConfig
from planner.dataset.content import write_content
from planner.dataset.reuse import Reuse


@dataclass(frozen=True)
class BuildReport:
    """What a build did; `num_plans_seen` counts the accepted plans of the window, rows and exclusions together.

    `unchanged` means that the version was there already with these very rows; `notes` counts what was mended or left
    out inside rows; `warnings` are sentences for a person.
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
    warnings: tuple[str, ...] = ()
    reuse: Reuse = Reuse()


def build_dataset(
    url: str,
    config: DatasetConfig,
    *,
    replicas: Sequence[str] = (),
    progress: Progress | None = None,
    cache: Path | None = None,
    at_boundary: Callable[[str], None] = lambda name: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> BuildReport:
    """Build the version that the config names, or verify it where it exists with the same rows.

    Args:
        url: the database; read in one snapshot, never written to.
        config: the window, the place and the checks.
        replicas: further servers with the same tables, which share the shards with the first; each is read in one
            snapshot of its own.
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
        content = write_content(
            (url, *replicas),
            config,
            folder,
            progress=progress or _silent,
            at_boundary=at_boundary,
            now=now,
            cache=cache,
        )
        version, unchanged = _publish(folder, uri, content.manifest, at_boundary, cache)
        warnings = content.warnings
        if unchanged:
            warnings += (*_parameter_warnings(content.manifest, version), *_catalogue_warnings(folder, version))
    return BuildReport(
        version=version,
        num_rows=content.profile.num_rows,
        rows_by_split=content.profile.rows_by_split,
        num_households=content.profile.num_households,
        exclusions=content.exclusions,
        checks=content.checks,
        unchanged=unchanged,
        seconds=time.monotonic() - began,
        num_plans_seen=content.num_plans_seen,
        notes=content.notes,
        warnings=warnings,
        reuse=content.reuse,
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
    if existing.name != manifest["version"]:
        raise DatasetError(
            f"{uri} holds the version {existing.name} under another name, so {manifest['version']} cannot be built "
            "there. Rename or remove it, or give the new one another name (build_dataset.date).",
            uri=uri,
        )
    if existing.digest != manifest["digest"]:
        changed = _changed_parameters(manifest, existing)
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


def _parameter_warnings(manifest: Mapping[str, Any], existing: DatasetVersion) -> tuple[str, ...]:
    """Whether other parameters were asked for that happen to give the same rows: the version keeps its own."""
    changed = _changed_parameters(manifest, existing)
    if not changed:
        return ()
    return (f"Version {existing.name} has the same rows and keeps the parameters of its build: {'; '.join(changed)}.",)


def _changed_parameters(manifest: Mapping[str, Any], existing: DatasetVersion) -> list[str]:
    then = existing.manifest["parameters"]
    return [
        f"{name} {then.get(name)} then, {value} now"
        for name, value in manifest["parameters"].items()
        if then.get(name) != value
    ]


def _catalogue_warnings(folder: Path, existing: DatasetVersion) -> tuple[str, ...]:
    """Whether the catalogue is another one now: no row changed, so the version stands, and keeps its own recipes."""
    then, now = (
        {row["id"]: row for row in pq.read_table(path).to_pylist()}
        for path in (existing.recipes_path, folder / versions.RECIPES)
    )
    changed = sum(then[id_] != now[id_] for id_ in then.keys() & now.keys())
    added, removed = len(now.keys() - then.keys()), len(then.keys() - now.keys())
    if not (changed or added or removed):
        return ()
    return (
        f"The recipes changed since {existing.name} was built ({added:,} added, {removed:,} removed, {changed:,} "
        "changed), but no row did: the version keeps its own recipes. For the new ones, build a version under "
        "another name (build_dataset.date).",
    )


def _seal(manifest: Mapping[str, Any]) -> bytes:
    return versions.encode_json(versions.sealed(manifest))
