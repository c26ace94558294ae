"""Verify a version: every hash, then the contract, then leaks; for any version, whoever built it.

In: the address of a version. Out: one `Checked` per question, in the order in which they are asked.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts import schema
from planner.contracts.errors import DatasetError
from planner.dataset import s3, versions
from planner.dataset.checks import file_facts, row_checks
from planner.dataset.leaks import Checked, checked, leak_checks
from planner.dataset.tally import tally_file
from planner.dataset.window import Window
from planner.dataset.write import described_schema


def verify_version(uri: str) -> list[Checked]:
    """Check a version; files on S3 are fetched anew, never taken from a cache.

    Raises:
        DatasetError: there is no version, its manifest is damaged, or the store refuses.
    """
    uri = uri.rstrip("/") or uri
    with _files(uri) as folder:
        manifest = versions.read_folder_manifest(folder, uri)
        found = [_file(folder, name, entry, uri) for name, entry in manifest["files"].items()]
        wrong = [line.name for line in found if line.result == "FINDING"]
        if {versions.TRAINING, versions.RECIPES} & set(wrong):
            return [*found, Checked("contract and leaks", "not run", f"{' and '.join(wrong)} cannot be trusted")]
        return [*found, *_contract(folder, manifest, uri), *_build_checks(folder, wrong)]


@contextlib.contextmanager
def _files(uri: str) -> Iterator[Path]:
    if not s3.is_s3(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="planner-verify-") as folder:
        s3.download_version(uri, Path(folder))
        yield Path(folder)


def _file(folder: Path, name: str, entry: Mapping[str, Any], uri: str) -> Checked:
    try:
        versions.verify_file(folder / name, entry, uri)
    except DatasetError as error:
        return Checked(name, "FINDING", str(error))
    return Checked(name, "passed", f"{entry['size']:,} bytes, SHA-256 {entry['sha256'][:16]}…")


def _contract(folder: Path, manifest: Mapping[str, Any], uri: str) -> Iterator[Checked]:
    """The schema first: nothing else can be asked of a file of another shape."""
    training, recipes = folder / versions.TRAINING, folder / versions.RECIPES
    try:
        differences = list(_schema_differences(folder))
        yield checked("schema", len(differences), "differences from the contract", more=": " * bool(differences)
                      + ", ".join(differences))  # fmt: skip
        if versions.TRAINING in differences or versions.RECIPES in differences:
            yield Checked("rows and leaks", "not run", "the files have another schema")
            return
        rows = pq.read_metadata(training).num_rows
        yield Checked(
            "rows", "passed" if rows == manifest["rows"] else "FINDING", f"{rows:,} rows, {manifest['rows']:,} promised"
        )
        yield checked("order", _out_of_order(training), "rows not in the order of (timestamp, event_id)")
        found = row_checks(file_facts(training), tally_file(training, recipes), _window(manifest))
        for name, (passed, detail) in found.items():
            yield Checked(name, "passed" if passed else "FINDING", detail)
        yield from leak_checks(training, recipes)
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(
            f"{uri} cannot be read as a dataset: {' '.join(str(error).split())[:200]}. Fetch or build it again."
        ) from None


def _schema_differences(folder: Path) -> Iterator[str]:
    if not pq.read_schema(folder / versions.TRAINING).equals(schema.TRAINING_SCHEMA):
        yield versions.TRAINING
    if not pq.read_schema(folder / versions.RECIPES).equals(schema.RECIPES_SCHEMA):
        yield versions.RECIPES
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads((folder / versions.SCHEMA).read_bytes())["fields"] == described_schema():
            return
    yield versions.SCHEMA


def _window(manifest: Mapping[str, Any]) -> Window:
    """The window that the manifest names.

    Raises:
        DatasetError: it names none.
    """
    try:
        return Window.between(manifest["parameters"]["start_date"], manifest["parameters"]["end_date"])
    except (KeyError, TypeError, ValueError):
        raise DatasetError(
            "The manifest's parameters hold no start_date and end_date. Build the version again."
        ) from None


def _out_of_order(training: Path) -> int:
    count, last = 0, (-(2**63), "")
    with pq.ParquetFile(training, page_checksum_verification=True, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["metadata.timestamp", "metadata.event_id"]):
            metadata = batch.column("metadata")
            times = metadata.field("timestamp").cast(pa.int64()).to_pylist()
            for row in zip(times, metadata.field("event_id").to_pylist(), strict=True):
                count += row < last
                last = row
    return count


def _build_checks(folder: Path, wrong: list[str]) -> Iterator[Checked]:
    """What only the build could see (snapshots' times, exclusions) stands in `checks.json`."""
    if versions.CHECKS in wrong:
        return
    with contextlib.suppress(ValueError, KeyError, TypeError):
        results = json.loads((folder / versions.CHECKS).read_bytes())["checks"]
        failed = [result["name"] for result in results if not result["passed"]]
        detail = f"{len(results) - len(failed)} of {len(results)} passed when it was built"
        yield Checked(
            "build_checks", "note" if failed else "passed", detail + "".join(f"; failed: {n}" for n in failed)
        )
        return
    yield Checked("build_checks", "FINDING", f"{versions.CHECKS} is not what a build writes")
