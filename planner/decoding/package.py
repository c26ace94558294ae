"""A registered model's folder: safetensors and JSON only, every file with its SHA-256, nothing that runs on load.

In: the parts of a planner. Out: a folder that `load_package` turns back into the same planner, or refuses:

    planner.json        kind, prompt version, base model by name and hash, decoding options, lineage
    catalogue.json      the dishes, as they were in the dataset
    popular.json        kind `popular`: the ranking and the days
    adapter/            kind `lora`: the adapter in PEFT's format
    tokenizer/          kind `lora`: the tokenizer of training
    base/               kind `lora` with `embed_base`: the base model itself
    manifest.json       SHA-256 and size of every file above; written last
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import ModelError
from planner.contracts.prompt import PROMPT_VERSION
from planner.decoding.base import (
    BaseFiles,
    LoadedBase,
    combined_hash,
    file_hashes,
    load_base,
    load_tokenizer,
    resolve_base,
)
from planner.decoding.decoder import Decide, Decoder
from planner.decoding.files import (
    CATALOGUE,
    DESCRIPTION,
    FORMAT,
    MANIFEST,
    SUFFIXES,
    Lineage,
    changed_file,
    read_catalogue,
    read_description,
    read_json,
    read_lineage,
    sha256_of_file,
    verify_package,
    whole_folder,
    write_json,
)
from planner.decoding.lora import LoraPlanner, check_adapter_folder, merge_adapter
from planner.decoding.popular import PopularPlanner
from planner.decoding.result import Planner


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How the model is decoded: rows at a time, whether a dish may stand twice in a plan, what is decided, and minutes
    by weekday that a dish may take there.
    """

    max_rows: int = 16
    repeats: bool = False
    decide: Decide = "token"
    beam: int = 1
    max_prep_time_by_day: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoraParts:
    """What a fine-tuned planner is made of: the base's files, its tokenizer, and the adapter's folder."""

    base: BaseFiles
    tokenizer: Any
    adapter: Path


def write_package(
    folder: Path,
    parts: LoraParts | PopularPlanner,
    catalogue: Catalogue,
    lineage: Lineage,
    *,
    options: DecodingOptions | None = None,
    embed_base: bool = False,
) -> str:
    """Write a model's folder, whole or not at all.

    Args:
        folder: a folder that does not exist yet, or is empty.
        parts: of a fine-tuned planner, or the popular planner.
        catalogue: the dishes that may be proposed.
        lineage: what it was trained on.
        options: kept for loading; None for the defaults.
        embed_base: put the base model itself inside, for hosts that cannot fetch it.

    Returns:
        The SHA-256 of the manifest, which stands for every byte of the model.

    Raises:
        ModelError: the folder is in use or cannot be written, or the adapter is not LoRA in safetensors.
    """
    with whole_folder(folder, "model") as new:
        description = {
            "format": FORMAT,
            "kind": "popular" if isinstance(parts, PopularPlanner) else "lora",
            "prompt_version": PROMPT_VERSION,
            "decoding": asdict(options or DecodingOptions()),
            "lineage": asdict(lineage),
        }
        if isinstance(parts, PopularPlanner):
            write_json(new / "popular.json", parts.to_dict())
        else:
            description |= _write_lora(new, parts, embed_base=embed_base)
        write_json(new / CATALOGUE, [recipe.to_dict() for recipe in catalogue.recipes])
        write_json(new / DESCRIPTION, description)
    return sha256_of_file(folder / MANIFEST)


def load_package(
    folder: Path, *, cache: Path | None = None, device: str = "auto", manifest_sha256: str | None = None
) -> Planner:
    """Check every byte of a model's folder, and load its planner.

    Args:
        folder: what `write_package` wrote.
        cache: where base models are kept; None for the default.
        device: `auto`, `cpu` or `cuda`.
        manifest_sha256: what `write_package` returned, if it is known from elsewhere.

    Raises:
        ModelError: a file is missing, changed or foreign, or the folder is of another format or prompt.
        BaseModelError: the base model cannot be had.
    """
    verify_package(folder, manifest_sha256=manifest_sha256)
    description, catalogue = read_description(folder), read_catalogue(folder)
    if description["kind"] == "popular":
        return PopularPlanner.from_dict(read_json(folder / "popular.json"), catalogue)
    if description["kind"] != "lora":
        raise ModelError(f"The model in {folder} is of kind {description['kind']!r}; known are lora and popular.")
    options = _read_options(folder, description["decoding"])
    base = load_base_of(folder, description, cache, device)
    model = merge_adapter(base, folder / "adapter")
    return LoraPlanner(Decoder(model, base.tokenizer, catalogue, **asdict(options)))


def _read_options(folder: Path, values: Mapping[str, Any]) -> DecodingOptions:
    """What `planner.json` says about decoding; members that an older version lacks have their defaults."""
    wanted = asdict(DecodingOptions())
    typed = all(name in wanted and type(value) is type(wanted[name]) for name, value in values.items())
    options = DecodingOptions(**values) if typed else DecodingOptions(max_rows=0)
    decide, beam = options.decide, options.beam
    if options.max_rows < 1 or beam < 1 or decide not in ("token", "dish") or (beam > 1 and decide != "dish"):
        raise changed_file(folder, DESCRIPTION, "of another form (member decoding)")
    return options


def _write_lora(folder: Path, parts: LoraParts, *, embed_base: bool) -> dict[str, Any]:
    check_adapter_folder(parts.adapter)
    (folder / "adapter").mkdir()
    shutil.copyfile(parts.adapter / "adapter_model.safetensors", folder / "adapter" / "adapter_model.safetensors")
    config = read_json(parts.adapter / "adapter_config.json")
    # Where the base lay on the training machine means nothing elsewhere; planner.json names the base.
    write_json(folder / "adapter" / "adapter_config.json", config | {"base_model_name_or_path": parts.base.name})
    _save_tokenizer(parts.tokenizer, folder / "tokenizer")
    if embed_base:
        (folder / "base").mkdir()
        for name in file_hashes(parts.base.folder):
            shutil.copyfile(parts.base.folder / name, folder / "base" / name)
    base = parts.base
    return {
        "base": {
            "name": base.name,
            "sha256": base.sha256,
            "source": base.source,
            "licence": base.licence,
            "embedded": embed_base,
        },
        "tokenizer_sha256": combined_hash(file_hashes(folder / "tokenizer")),
    }


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    template, tokenizer.chat_template = tokenizer.chat_template, None  # a template is code in a file; none is needed
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = template
    for path in folder.iterdir():
        if path.suffix not in SUFFIXES:
            path.unlink()  # merges.txt and the like repeat what tokenizer.json holds


def load_base_of(folder: Path, description: Mapping[str, Any], cache: Path | None, device: str) -> LoadedBase:
    """Load the base model of a verified folder with the folder's own tokenizer; `description` is its `planner.json`.

    Raises:
        ModelError: the base or the tokenizer is not the one that the model was trained with.
        BaseModelError: the base cannot be had.
    """
    if combined_hash(file_hashes(folder / "tokenizer")) != description["tokenizer_sha256"]:
        raise changed_file(folder, "tokenizer", "not the tokenizer that the model was trained with")
    wanted = description["base"]
    if wanted["embedded"]:
        files = BaseFiles(
            wanted["name"],
            folder / "base",
            combined_hash(file_hashes(folder / "base")),
            wanted["licence"],
            wanted["source"],
        )
    else:
        files = resolve_base(wanted["name"], cache=cache)
    if files.sha256 != wanted["sha256"]:
        raise ModelError(
            f"Base model {wanted['name']!r} in {files.folder} is not the one that the model in {folder} was trained "
            f"on (sha256 {files.sha256[:12]}…, trained on {wanted['sha256'][:12]}…). Provide that base or train again.",
            found=files.sha256,
            wanted=wanted["sha256"],
        )
    base = load_base(files, device=device)
    return LoadedBase(base.model, load_tokenizer(folder / "tokenizer", wanted["name"]), files)


__all__ = ["DecodingOptions", "Lineage", "LoraParts", "load_package", "read_lineage", "verify_package", "write_package"]
