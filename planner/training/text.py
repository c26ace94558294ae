"""From examples to token ids: chosen, rendered and encoded once per run.

In: examples of a dataset version, in any order. Out: `TextRow`s (prompt and target as text) and `EncodedRows`, whose
bytes and ids are those that replay and serving see, because the same functions of `planner.contracts.prompt` make them.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import TrainingError
from planner.contracts.example import Example
from planner.contracts.prompt import Tokenizer, encode_prompt, encode_target, render_plan, render_prompt
from planner.contracts.split import stable_order


@dataclass(frozen=True, slots=True)
class TextRow:
    """One example as the model's text: the prompt, and the accepted plan that continues it."""

    event_id: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as token ids; `target_ids` ends with the end token."""

    event_id: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and target together."""
        return len(self.prompt_ids) + len(self.target_ids)


@dataclass(frozen=True)
class EncodedRows:
    """The rows that fit, in the order given; `num_overlong` counts those that were left out as too long."""

    rows: tuple[EncodedRow, ...]
    num_overlong: int

    @property
    def digest(self) -> str:
        """SHA-256 over every id of every row, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps([row.event_id, row.prompt_ids, row.target_ids]).encode())
        return digest.hexdigest()


def text_rows(
    examples: Iterable[Example], catalogue: Catalogue, *, most: int | None = None, seed: int = 0
) -> tuple[TextRow, ...]:
    """Choose at most `most` examples and render them.

    Args:
        examples: streamed; at most `most` are held in memory.
        catalogue: of the same dataset version.
        most: None takes all.
        seed: another seed chooses other rows.

    Returns:
        Rows ordered by a stable hash of (seed, event id): the same rows whatever order the examples come in.
    """

    def order(example: Example) -> tuple[int, str]:
        return stable_order(example.event_id, seed), example.event_id

    chosen = sorted(examples, key=order) if most is None else heapq.nsmallest(most, examples, key=order)
    return tuple(
        TextRow(e.event_id, render_prompt(e.request, catalogue), render_plan(e.accepted_plan, e.request, catalogue))
        for e in chosen
    )


def encode_rows(
    tokenizer: Tokenizer, texts: Sequence[TextRow], *, max_tokens: int, max_overlong_share: float, split: str = "train"
) -> EncodedRows:
    """Encode every row once; a row longer than `max_tokens` is left out whole and counted, never cut.

    Raises:
        TrainingError: the share of rows that are too long exceeds `max_overlong_share`.
        ContractError: the tokenizer has no end token.
    """
    rows = tuple(
        EncodedRow(t.event_id, tuple(encode_prompt(tokenizer, t.prompt)), tuple(encode_target(tokenizer, t.target)))
        for t in texts
    )
    fitting = tuple(row for row in rows if row.num_tokens <= max_tokens)
    num_overlong = len(rows) - len(fitting)
    if num_overlong > max_overlong_share * len(rows):
        longest = max(rows, key=lambda row: row.num_tokens)
        raise TrainingError(
            f"{num_overlong:,} of {len(rows):,} {split} rows are longer than {max_tokens:,} tokens "
            f"(the longest, event {longest.event_id}, has {longest.num_tokens:,}). "
            "Raise train.max_tokens, or train.max_overlong_share to leave them out.",
            num_overlong=num_overlong,
            num_rows=len(rows),
            longest=longest.num_tokens,
        )
    return EncodedRows(fitting, num_overlong)
