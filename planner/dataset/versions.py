"""Dataset versions: a folder with a manifest that was written last; opened only when every byte is as it was built.

In: the address of a version (a folder or `s3://`). Out: a `DatasetVersion` whose files lie on local disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.contracts.errors import DatasetError
from planner.contracts.example import DatasetVersion
from planner.dataset import s3
from planner.dataset.config import NAME

TRAINING, RECIPES, SCHEMA = "training.parquet", "recipes.parquet", "schema.json"
SUMMARY, CARD, CHECKS, MANIFEST = "dataset_summary.md", "card.html", "checks.json", "manifest.json"
# Per row a fingerprint of the source rows that it was made of, for later builds (see `reuse.py`).
SOURCES = "sources.parquet"
FILES = (TRAINING, SOURCES, RECIPES, SCHEMA, SUMMARY, CHECKS, CARD)
# Versions from before there was a card or a fingerprint stay versions.
_OPTIONAL = {CARD, SOURCES}
FORMAT = 1
DIGEST_DIGITS = 32
_SEAL = "sha256"
DEFAULT_CACHE = Path.home() / ".cache" / "planner" / "datasets"
_REBUILD = "Build it again under another name (build_dataset.date), or fetch it again."


def open_version(uri: str, *, cache: Path | None = None) -> DatasetVersion:
    """Open a version after checking the SHA-256 of every file against its manifest.

    Args:
        uri: the version's folder, or `s3://bucket/prefix/planner/<version>`.
        cache: where files from S3 are kept, by digest; `~/.cache/planner/datasets` by default.

    Raises:
        DatasetError: the version is missing, incomplete or changed since its build; names the file.
    """
    uri = uri.rstrip("/") or uri
    if s3.is_s3(uri):
        return s3.fetch_version(uri, cache or DEFAULT_CACHE, verify=verify_folder)
    return verify_folder(Path(os.path.expanduser(uri)), uri=uri)


def verify_folder(folder: Path, *, uri: str) -> DatasetVersion:
    """Check a folder's files against its manifest.

    Raises:
        DatasetError: as `open_version`.
    """
    folder = folder.absolute()
    manifest = read_folder_manifest(folder, uri)
    for name, entry in manifest["files"].items():
        verify_file(folder / name, entry, uri)
    return DatasetVersion(
        name=manifest["version"],
        uri=uri if s3.is_s3(uri) else str(folder),
        digest=manifest["digest"],
        training_path=folder / TRAINING,
        recipes_path=folder / RECIPES,
        num_rows=manifest["rows"],
        manifest=manifest,
    )


def read_folder_manifest(folder: Path, uri: str) -> dict[str, Any]:
    """The manifest of a version in a local folder; `uri` is for the messages.

    Raises:
        DatasetError: there is none, or it is damaged.
    """
    return parse_manifest(_manifest_bytes(folder, uri), uri)


def verify_file(path: Path, entry: Mapping[str, Any], uri: str) -> None:
    """Check one file against its entry in the manifest.

    Raises:
        DatasetError: it is missing, unreadable or changed.
    """
    try:
        size = path.stat().st_size
        changed = size != entry["size"] or sha256_of(path) != entry["sha256"]
    except FileNotFoundError:
        raise DatasetError(
            f"The dataset at {uri} is incomplete: {path.name} is missing. {_REBUILD}", uri=uri, file=path.name
        ) from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.", uri=uri, file=path.name) from None
    if changed:
        raise DatasetError(
            f"The dataset at {uri} changed since its build: {path.name} does not have the SHA-256 of its manifest. "
            f"{_REBUILD}",
            uri=uri,
            file=path.name,
        )


def make_manifest(
    folder: Path,
    *,
    version: str,
    rows: int,
    created_at: str,
    parameters: Mapping[str, Any],
    num_plans_seen: int | None = None,
    exclusions: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of the finished files in `folder`; byte for byte the same for the same files and arguments.

    `exclusions` are the plans that were left out, by reason, of the `num_plans_seen` accepted plans of the window;
    `source` is what a later build needs to know of the database (`sources.py`), and what was reused.
    """
    files = {name: {"sha256": sha256_of(folder / name), "size": (folder / name).stat().st_size} for name in FILES}
    return sealed(
        {
            "format": FORMAT,
            "version": version,
            "digest": str(files[TRAINING]["sha256"])[:DIGEST_DIGITS],
            "rows": rows,
            "created_at": created_at,
            "parameters": dict(parameters),
            **({} if exclusions is None else {"num_plans_seen": num_plans_seen, "exclusions": dict(exclusions)}),
            **({"source": dict(source)} if source else {}),
            "files": files,
        }
    )


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of its other members, so that a change of any of them is noticed."""
    rest = {name: value for name, value in manifest.items() if name != _SEAL}
    return {**rest, _SEAL: hashlib.sha256(encode_json(rest)).hexdigest()}


def encode_json(value: Mapping[str, Any]) -> bytes:
    """The one way in which the JSON files of a version are written."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def parse_manifest(content: bytes, uri: str) -> dict[str, Any]:
    """Check that a manifest is one.

    Raises:
        DatasetError: it is not.
    """
    try:
        manifest = json.loads(content)
        assert manifest["format"] == FORMAT and isinstance(manifest["rows"], int)
        assert isinstance(manifest["parameters"], dict)
        assert all(isinstance(manifest.get(name, {}), dict) for name in ("source", "exclusions"))
        assert NAME.fullmatch(manifest["version"]) and set(FILES) - _OPTIONAL <= set(manifest["files"]) <= set(FILES)
        assert all(set(entry) == {"sha256", "size"} for entry in manifest["files"].values())
        assert manifest["digest"] == manifest["files"][TRAINING]["sha256"][:DIGEST_DIGITS]
        assert encode_json(sealed(manifest)) == content
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise DatasetError(
            f"The dataset at {uri} is damaged: {MANIFEST} is not what a build writes. {_REBUILD}",
            uri=uri,
            file=MANIFEST,
        ) from None
    assert isinstance(manifest, dict)
    return manifest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_bytes(folder: Path, uri: str) -> bytes:
    if not folder.is_dir():
        raise DatasetError(
            f"There is no dataset at {uri}. Build it with `mlflow run . -e build_dataset`, or correct the path.",
            uri=uri,
        )
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise DatasetError(
            f"The dataset at {uri} is incomplete: {MANIFEST} is missing, so no build finished there. {_REBUILD}",
            uri=uri,
            file=MANIFEST,
        ) from None
    except OSError as error:
        raise DatasetError(f"The dataset at {uri} cannot be read: {error.strerror}.", uri=uri) from None
