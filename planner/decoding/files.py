"""The files of a registered model's folder: their manifest, and what can be read of them without loading a model.

In: a folder that `planner.decoding.package` wrote. Out: its lineage, or a refusal that names the file. Imports neither
torch nor transformers, so that a step which is reused does not wait for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from planner.contracts.catalogue import Catalogue, Recipe
from planner.contracts.errors import ModelError
from planner.contracts.prompt import PROMPT_VERSION

MANIFEST = "manifest.json"
DESCRIPTION = "planner.json"
CATALOGUE = "catalogue.json"
SUFFIXES = (".json", ".safetensors")
FORMAT = 1
# Members of `planner.json` by type; a list's is that of its elements. What `decoding` holds is the package's to read.
_LINEAGE_SHAPE = {"dataset_version": str, "dataset_digest": str, "trained_splits": [str], "params": dict}
_BASE_SHAPE = {"name": str, "sha256": str, "source": str, "licence": str, "embedded": bool}
_SHAPE = {"kind": str, "decoding": dict, "lineage": _LINEAGE_SHAPE}
_LORA_SHAPE = {**_SHAPE, "base": _BASE_SHAPE, "tokenizer_sha256": str}


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a model learned from: a dataset version by name and digest, the splits that it saw, and how."""

    dataset_version: str
    dataset_digest: str
    trained_splits: tuple[str, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


def verify_package(folder: Path, *, manifest_sha256: str | None = None) -> None:
    """Compare every file of a model's folder with the manifest.

    Raises:
        ModelError: names the first file that is missing, changed or foreign.
    """
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"{folder} holds no complete model: {MANIFEST} is missing.", file=MANIFEST)
    if manifest_sha256 is not None and sha256_of_file(folder / MANIFEST) != manifest_sha256:
        raise changed_file(folder, MANIFEST, "changed since the model was registered")
    manifest, found = read_json(folder / MANIFEST), contents_of(folder)
    wanted = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(wanted, dict):
        raise changed_file(folder, MANIFEST, "no list of files")
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise changed_file(folder, name, "missing")
        if name not in wanted:
            raise changed_file(folder, name, "not part of the model")
        if wanted[name] != found[name]:
            raise changed_file(folder, name, "changed since the model was registered")


def read_lineage(folder: Path) -> Lineage:
    """What the model in a folder was trained on, as its verified `planner.json` says.

    Raises:
        ModelError: the folder is no intact model.
    """
    verify_package(folder)
    value = read_description(folder)["lineage"]
    return Lineage(value["dataset_version"], value["dataset_digest"], tuple(value["trained_splits"]), value["params"])


def read_description(folder: Path) -> dict[str, Any]:
    """The `planner.json` of a verified folder, each member of its type.

    Raises:
        ModelError: it is of another format or prompt, or of another form.
    """
    value = read_json(folder / DESCRIPTION)
    if not isinstance(value, dict):
        raise changed_file(folder, DESCRIPTION, "no JSON object")
    if value.get("format") != FORMAT or value.get("prompt_version") != PROMPT_VERSION:
        raise ModelError(
            f"The model in {folder} has format {value.get('format')!r} and prompt version "
            f"{value.get('prompt_version')!r}; this code reads {FORMAT} and {PROMPT_VERSION!r}. Train it again."
        )
    for name, shape in (_LORA_SHAPE if value.get("kind") == "lora" else _SHAPE).items():
        if not _fits(value.get(name), shape):
            raise changed_file(folder, DESCRIPTION, f"of another form (member {name})")
    return value


def read_catalogue(folder: Path) -> Catalogue:
    """The dishes of a verified folder.

    Raises:
        ModelError: the file is no list of dishes.
        CatalogueError: two of them are the same.
    """
    try:
        return Catalogue.of(Recipe.from_dict(row) for row in read_json(folder / CATALOGUE))
    except (KeyError, TypeError, AttributeError) as error:
        raise changed_file(folder, CATALOGUE, "no list of dishes") from error


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents_of(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file but the manifest, by its path in the folder.

    Raises:
        ModelError: a file is neither JSON nor safetensors.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if name == MANIFEST:
            continue
        if path.is_symlink() or path.suffix not in SUFFIXES:
            raise changed_file(folder, name, "neither JSON nor safetensors")
        found[name] = {"sha256": sha256_of_file(path), "size": path.stat().st_size}
    return found


@contextlib.contextmanager
def whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` with its manifest when the block ends, whole or not at all.

    Args:
        folder: one that does not exist yet, or is empty.
        what: is written, for the errors: `model`, `export`.

    Raises:
        ModelError: the folder is in use, or cannot be written, or a file is neither JSON nor safetensors.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"The {what}'s folder {folder} is not empty. Name a new one.")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        write_json(temporary / MANIFEST, {"files": contents_of(temporary)})
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The {what} cannot be written to {folder}: {getattr(error, 'strerror', None) or error}. "
            "Free some space there, or choose another folder.",
            folder=folder,
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def changed_file(folder: Path, name: str, what: str) -> ModelError:
    """The error that names a file which is not as it was registered."""
    return ModelError(
        f"File {name} of the model in {folder} is {what}. Fetch the version again, or register it again.",
        folder=folder,
        file=name,
    )


def write_json(path: Path, value: object) -> None:
    """Write a value as readable JSON with sorted keys: equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ModelError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON. Fetch the model version again.", file=path.name) from error


def _fits(value: object, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_fits(value.get(name), part) for name, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(element, shape[0]) for element in value)
    return type(value) is shape
