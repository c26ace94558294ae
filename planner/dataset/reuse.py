"""Rows that an earlier version can give to a build: which version, and what keeps it from giving them.

In: the config, what the server says of its tables, the recipes now. Out: the files of an earlier version whose rows may
be taken where their sources are unchanged (`sources.py` has the proof), or a sentence that says why there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from planner.contracts.errors import DatasetError
from planner.contracts.example import DatasetVersion
from planner.dataset import s3, versions
from planner.dataset.config import LATEST, DatasetConfig
from planner.dataset.counts import Counts
from planner.dataset.earlier import EarlierRows
from planner.dataset.listing import list_versions
from planner.dataset.sources import SourceState, freshness

_MOST_TRIED = 10
_REASONS = {
    "new": "new",
    "other": "of other sources than then",
    "fresh": "with sources written since, or too shortly before that build",
    "recipes": "whose recipes changed",
    "compared": "built anyway, and equal",
}


@dataclass(frozen=True)
class Reuse:
    """What a build took from an earlier version; `told` is a sentence for a person, empty where nothing was asked."""

    version: str | None = None
    digest: str | None = None
    num_rows: int = 0
    told: str = ""


@dataclass(frozen=True)
class Earlier:
    """An earlier version whose rows may be taken."""

    version: DatasetVersion
    rows: EarlierRows


def find_earlier(
    config: DatasetConfig, state: SourceState, recipes: Collection[str], cache: Path
) -> tuple[Earlier | None, str]:
    """The version to take rows from, or None and a sentence about why there is none (empty where none was asked for).

    Args:
        config: `reuse` names a version, or `latest`: the newest whole one whose window meets this one.
        state: of the snapshot that this build reads.
        recipes: ids of the catalogue now.
        cache: where versions on S3 are kept.
    """
    if config.reuse is None:
        return None, ""
    root = f"{config.datasets.rstrip('/')}/planner"
    problems: list[str] = []
    for name in _names(config):
        uri = f"{root}/{name}"
        try:
            fresh = freshness(_manifest(uri).get("source"), state)
            if not isinstance(fresh, str):
                version = versions.open_version(uri, cache=cache)
                return Earlier(version, _rows(version, fresh, recipes)), ""
            problems.append(f"Nothing was taken from {name}: {fresh}.")
        except DatasetError as error:
            problems.append(f"Nothing was taken from {name}: {error}")
    return None, problems[0] if problems else "There is no earlier version to take rows from."


def reuse_of(earlier: Earlier | None, counts: Counts, told: str) -> Reuse:
    """The report on it."""
    if earlier is None:
        return Reuse(told=told)
    built = sum(counts.not_reused.values())
    why = {what: counts.not_reused.get(name, 0) for name, what in _REASONS.items()}
    reasons = ", ".join(f"{count:,} {what}" for what, count in why.items() if count)
    name = earlier.version.name
    return Reuse(
        name,
        earlier.version.digest,
        counts.num_reused,
        f"{counts.num_reused:,} rows were taken from {name}, {built:,} built" + (f": {reasons}." if built else "."),
    )


def _names(config: DatasetConfig) -> Iterator[str]:
    if config.reuse != LATEST:
        yield str(config.reuse)
        return
    try:
        found = list_versions(config.datasets)
    except DatasetError:
        return
    start, end = config.start_date.isoformat(), config.end_date.isoformat()
    usable = [
        entry
        for entry in found
        if entry.problem is None and entry.window and entry.name != config.version
        and entry.window[:10] < end and entry.window[-10:] > start
    ]  # fmt: skip
    for entry in sorted(usable, key=lambda entry: (entry.created_at or "", entry.name), reverse=True)[:_MOST_TRIED]:
        yield entry.name


def _manifest(uri: str) -> Mapping[str, Any]:
    if not s3.is_s3(uri):
        return versions.read_folder_manifest(Path(uri), uri)
    content = s3.read_manifest(uri)
    if content is None:
        raise DatasetError(f"There is no finished dataset at {uri}.", uri=uri)
    return versions.parse_manifest(content, uri)


def _rows(version: DatasetVersion, fresh: Any, recipes: Collection[str]) -> EarlierRows:
    then, now = set(pq.read_table(version.recipes_path, columns=["id"]).column("id").to_pylist()), set(recipes)
    return EarlierRows(
        str(version.training_path),
        str(version.training_path.parent / versions.SOURCES),
        fresh,
        removed=tuple(sorted(then - now)),
        recipes_added=bool(now - then),
    )
