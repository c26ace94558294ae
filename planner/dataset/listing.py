"""Which versions a datasets folder holds, with those that are not whole marked as such.

In: the root (`build_dataset.datasets`), a folder or `s3://`. Out: one entry per version; reads manifests and sizes
only, no hash is computed (`verify` does that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.contracts.errors import DatasetError
from planner.dataset import s3, versions


@dataclass(frozen=True)
class Listed:
    """One entry; the members behind `problem` are None where the manifest does not tell them.

    `problem` is None for a version whose files are there in the sizes of its manifest, else says what is wrong.
    """

    name: str
    problem: str | None
    num_rows: int | None = None
    digest: str | None = None
    window: str | None = None
    created_at: str | None = None


def list_versions(root: str) -> list[Listed]:
    """The versions under `<root>/planner/` in name order; unfinished and damaged ones are listed with their problem.

    Raises:
        DatasetError: there is no such folder, or the store refuses.
    """
    root = root.rstrip("/") or "/"
    if s3.is_s3(root):
        return _s3_versions(f"{root}/planner")
    folder = Path(root) / "planner"
    try:
        entries = sorted(path for path in folder.iterdir() if not path.match(".*.lock"))
    except OSError as error:
        raise _nothing_at(str(folder), f" ({error.strerror})") from None
    return [_local_version(path) for path in entries]


def _nothing_at(place: str, why: str = "") -> DatasetError:
    return DatasetError(
        f"There are no datasets at {place}{why}. Give the folder that build_dataset.datasets names, or build a first "
        "version with `mlflow run . -e build_dataset`.",
        place=place,
    )


def _local_version(path: Path) -> Listed:
    if path.name.startswith("."):
        return Listed(path.name, "unfinished: being built, or cut off (the next build removes it)")
    try:
        if not path.is_dir():
            return Listed(path.name, "no dataset: not a folder")
        content = (path / versions.MANIFEST).read_bytes()
        sizes = {entry.name: entry.stat().st_size for entry in path.iterdir() if entry.is_file()}
    except FileNotFoundError:
        return Listed(path.name, f"incomplete: {versions.MANIFEST} is missing")
    except OSError as error:
        return Listed(path.name, f"cannot be read: {error.strerror}")
    return _listed(path.name, content, sizes)


def _s3_versions(root: str) -> list[Listed]:
    found, folders = [], s3.list_folders(root)
    if not folders:
        raise _nothing_at(root)
    for name, sizes in sorted(folders.items()):
        content = s3.read_manifest(f"{root}/{name}")
        if content is None:
            found.append(Listed(name, f"incomplete: {versions.MANIFEST} is missing"))
        else:
            found.append(_listed(name, content, sizes))
    return found


def _listed(name: str, content: bytes, sizes: Mapping[str, int]) -> Listed:
    try:
        manifest = versions.parse_manifest(content, name)
    except DatasetError:
        return Listed(name, f"damaged: {versions.MANIFEST} is not what a build writes")
    parameters = manifest["parameters"]
    window = f"{parameters.get('start_date')} to {parameters.get('end_date')}"
    return Listed(
        name, _problem(manifest, sizes), manifest["rows"], manifest["digest"], window, str(manifest.get("created_at"))
    )


def _problem(manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    for file, entry in manifest["files"].items():
        if file not in sizes:
            return f"incomplete: {file} is missing"
        if sizes[file] != entry["size"]:
            return f"damaged: {file} has another size"
    return None
