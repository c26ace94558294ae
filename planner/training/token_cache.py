"""The splits as encoded rows, kept on disk: the next start on the same data, tokenizer and code encodes nothing.

In: texts, a tokenizer, a folder, and a key that names all that the ids depend on. Out: `EncodedRows`, read back only if
their digest is the one that they were written with. Plain arrays and JSON, no pickle.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from planner.contracts.errors import TrainingError
from planner.contracts.prompt import Tokenizer
from planner.training.config import TrainConfig
from planner.training.text import EncodedRow, EncodedRows, LegalTokens, TextRow, encode_rows

KEEP = 8  # files; the oldest go


@dataclass(frozen=True)
class TokenCache:
    """Rows under `folder`; `key` holds dataset digest, tokenizer hash, code and options."""

    folder: Path
    key: str

    def rows(self, split: str, encode: Callable[[], EncodedRows]) -> EncodedRows:
        """The rows of a split, encoded now or at an earlier start. A damaged file is encoded anew.

        Raises:
            TrainingError: the folder cannot be written.
        """
        name = hashlib.sha256(f"{split} {self.key}".encode()).hexdigest()[:32]
        path = self.folder / f"{name}.npz"
        found = _read(path)
        if found is None:
            found = encode()
            try:
                self._keep(path, found)
            except OSError as error:
                raise TrainingError(
                    f"The encoded rows cannot be kept in {self.folder} ({error.strerror or error}), and checkpoints "
                    "would not fit either. Free some space there, or set `folder` to another place.",
                    folder=self.folder,
                ) from error
        return found

    def _keep(self, path: Path, found: EncodedRows) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
            for litter in self.folder.glob("*.part"):  # of a kill: nobody else writes now
                litter.unlink()
            _write(path, found)
            for old in sorted(self.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)[:-KEEP]:
                old.unlink()


def encoded_splits(
    tokenizer: Tokenizer,
    train_texts: Sequence[TextRow],
    validation_texts: Sequence[TextRow],
    config: TrainConfig,
    *,
    legal_tokens: LegalTokens | None,
    cache: TokenCache | None,
) -> tuple[EncodedRows, EncodedRows]:
    """The rows to train on and to validate with, encoded or read back.

    Raises:
        TrainingError: there are none to train on, or too many are too long.
    """

    def encoded(split: str, texts: Sequence[TextRow]) -> EncodedRows:
        encode = partial(
            encode_rows,
            tokenizer,
            texts,
            max_tokens=config.max_tokens,
            max_overlong_share=config.max_overlong_share,
            split=split,
            legal_tokens=legal_tokens,
        )
        return encode() if cache is None else cache.rows(split, encode)

    train, validation = encoded("train", train_texts), encoded("validation", validation_texts)
    if not train.rows:
        raise TrainingError(
            f"There are no rows to train on: {len(train_texts)} in the train split, {train.num_overlong} of them too "
            "long. Build the dataset over a longer window, or raise train.max_tokens.",
            num_overlong=train.num_overlong,
        )
    return train, validation


def _write(path: Path, encoded: EncodedRows) -> None:
    rows = encoded.rows
    head = {
        "digest": encoded.digest,
        "num_overlong": encoded.num_overlong,
        "num_unlisted": encoded.num_unlisted,
        "event_ids": [row.event_id for row in rows],
        "legal": [row.legal_ids is not None for row in rows],
    }
    part = path.with_suffix(".part")
    arrays: dict[str, Any] = {
        "head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
        **_packed("prompt", [row.prompt_ids for row in rows]),
        **_packed("target", [row.target_ids for row in rows]),
        **_packed("legal", [ids for row in rows for ids in row.legal_ids or ()]),
    }
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def _read(path: Path) -> EncodedRows | None:
    """The rows of a file; None where there is none or it is not what was written."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            head: dict[str, Any] = json.loads(arrays["head"].tobytes())
            prompts, targets = _unpacked("prompt", arrays), _unpacked("target", arrays)
            legal = iter(_unpacked("legal", arrays))
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        # RuntimeError: a flipped bit says that the file is encrypted, or packed in a way that is not implemented.
        return None
    rows = tuple(
        EncodedRow(event_id, tuple(prompt.tolist()), tuple(target.tolist()), _next(legal, len(target), has_legal))
        for event_id, prompt, target, has_legal in zip(head["event_ids"], prompts, targets, head["legal"], strict=True)
    )
    encoded = EncodedRows(rows, head["num_overlong"], head["num_unlisted"])
    return encoded if encoded.digest == head["digest"] else None


def _next(legal: Iterator[NDArray[np.int64]], number: int, has_legal: bool) -> tuple[NDArray[np.int64], ...] | None:
    return tuple(next(legal) for _ in range(number)) if has_legal else None


def _packed(name: str, lists: Sequence[Sequence[int] | NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    ids = [np.asarray(ids, dtype=np.int64) for ids in lists]
    return {
        f"{name}_ids": np.concatenate(ids) if ids else np.empty(0, dtype=np.int64),
        f"{name}_lengths": np.array([len(part) for part in ids], dtype=np.int64),
    }


def _unpacked(name: str, arrays: Any) -> list[NDArray[np.int64]]:
    lengths = arrays[f"{name}_lengths"]
    return np.split(arrays[f"{name}_ids"], np.cumsum(lengths)[:-1]) if len(lengths) else []
