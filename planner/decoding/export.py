"""A registered model in the form that other engines load: vLLM, TGI, llama.cpp's converter, a GPU cluster's replay.

In: a folder that `write_package` wrote. Out: a folder with

    merged/         base and adapter as one model in safetensors, with the tokenizer of training
    adapter/        the adapter alone, in PEFT's format
    catalogue.json  the dishes
    handles.json    what a plan's text is made of: title and id of each dish, the tokens of its line, hashes
    manifest.json   SHA-256 and size of every file above; written last
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.contracts.catalogue import Catalogue, text_title
from planner.contracts.errors import ModelError
from planner.contracts.plan import WEEKDAYS
from planner.decoding.base import combined_hash, file_hashes, quiet_transformers
from planner.decoding.files import (
    CATALOGUE,
    MANIFEST,
    read_catalogue,
    read_description,
    sha256_of_file,
    verify_package,
    whole_folder,
)
from planner.decoding.lora import merge_adapter
from planner.decoding.package import load_base_of
from planner.decoding.trie import NUMBER, USUAL, CatalogueTrie, build_trie

FORMAT = 1


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: `num_bytes` of `num_files` files, handles of `num_recipes` dishes."""

    folder: Path
    num_files: int
    num_bytes: int
    num_recipes: int


def export_package(package: Path, folder: Path, *, cache: Path | None = None, device: str = "cpu") -> ExportReport:
    """Write a model's folder in the form of other engines, whole or not at all.

    Args:
        package: the registered version's folder; every byte is checked first.
        folder: a folder that does not exist yet, or is empty.
        cache: where base models are kept; None for the default.
        device: where the adapter is merged; on a CPU the weights are fp32, on a GPU bf16.

    Raises:
        ModelError: the model is damaged or has no weights, or the folder is in use or cannot be written.
        BaseModelError: the base model cannot be had.
    """
    verify_package(package)
    description = read_description(package)
    if description["kind"] != "lora":
        raise ModelError(f"The model in {package} is of kind {description['kind']!r}, which has no weights to export.")
    with whole_folder(folder, "export") as new:
        num_recipes = _write_parts(package, new, description, cache, device)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST]
    return ExportReport(folder, len(sizes) + 1, sum(sizes), num_recipes)


def handles_of(catalogue: Catalogue, trie: CatalogueTrie) -> Iterator[dict[str, Any]]:
    """One line for each dish: id, title, whether it may be proposed, and the tokens behind a day's label.

    `tokens` is the whole line of the usual servings, its newline included; `counted` ends in ` x`, a number follows.
    Either is null where the text has another form: a dish that left, or a title that another one begins with.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for leaf in range(trie.num_leaves):
        kind = int(trie.servings[leaf])
        if kind in (USUAL, NUMBER):
            found[int(trie.recipe[leaf]), kind] = trie.tokens[leaf, : trie.lengths[leaf]].tolist()
    for row, recipe in enumerate(catalogue.recipes):
        yield {
            "id": recipe.id,
            "title": text_title(recipe.title),
            "active": recipe.active,
            "tokens": found.get((row, USUAL)),
            "counted": found.get((row, NUMBER)),
        }


def _write_parts(package: Path, folder: Path, description: Mapping[str, Any], cache: Path | None, device: str) -> int:
    catalogue = read_catalogue(package)
    base = load_base_of(package, description, cache, device)
    trie = build_trie(catalogue, base.tokenizer)
    model = merge_adapter(base, package / "adapter")
    with quiet_transformers():
        model.save_pretrained(folder / "merged")
    for path in (package / "tokenizer").iterdir():
        shutil.copyfile(path, folder / "merged" / path.name)
    shutil.copytree(package / "adapter", folder / "adapter")
    shutil.copyfile(package / CATALOGUE, folder / CATALOGUE)
    head = {
        "format": FORMAT,
        "package_sha256": sha256_of_file(package / MANIFEST),
        "base": description["base"],
        "prompt_version": description["prompt_version"],
        "decoding": description["decoding"],
        "tokenizer_sha256": combined_hash(file_hashes(package / "tokenizer")),
        "end": trie.end,
        "labels": dict(zip(WEEKDAYS, map(list, trie.labels), strict=True)),
    }
    _write_handles(folder / "handles.json", head, handles_of(catalogue, trie))
    return len(catalogue.recipes)


def _write_handles(path: Path, head: Mapping[str, Any], recipes: Iterator[Mapping[str, Any]]) -> None:
    """A JSON object with one line for each dish, so that it can be read and compared."""
    lines = [json.dumps(recipe, ensure_ascii=False) for recipe in recipes]
    members = [f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in head.items()]
    text = "{" + ",\n".join([*members, '"recipes": [\n' + ",\n".join(lines) + "\n]"]) + "}\n"
    path.write_text(text, encoding="utf-8")
