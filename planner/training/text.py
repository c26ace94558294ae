"""From examples to token ids: chosen, rendered and encoded once per run.

In: examples of a dataset version, in any order. Out: `TextRow`s (prompt and target as text) and `EncodedRows`, whose
bytes and ids are those that replay and serving see, because the same functions of `planner.contracts.prompt` make them.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.contracts.catalogue import Catalogue
from planner.contracts.errors import TrainingError
from planner.contracts.example import Example
from planner.contracts.prompt import (
    Tokenizer,
    default_servings,
    encode_prompt,
    encode_target,
    render_plan,
    render_prompt,
)
from planner.contracts.split import stable_order


@dataclass(frozen=True, slots=True)
class TextRow:
    """One example as the model's text: the prompt, and the accepted plan that continues it.

    `servings` is what a line of the plan without a number means.
    """

    event_id: str
    prompt: str
    target: str
    servings: int = 0


# From the usual servings and a target's token ids to the ids, ascending, that may stand at each place of it; None where
# the target is not a plan of the catalogue.
LegalTokens = Callable[[int, Sequence[int]], "Sequence[NDArray[np.int64]] | None"]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as token ids; `target_ids` ends with the end token.

    `legal_ids` are for each target token the ids among which it is chosen, itself one of them; None for all ids.
    """

    event_id: str
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    legal_ids: tuple[NDArray[np.int64], ...] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and target together."""
        return len(self.prompt_ids) + len(self.target_ids)

    @property
    def scored(self) -> tuple[int, ...]:
        """Which target tokens have a loss: all, or those that leave a choice."""
        if self.legal_ids is None:
            return tuple(range(len(self.target_ids)))
        return tuple(index for index, ids in enumerate(self.legal_ids) if len(ids) > 1)


@dataclass(frozen=True)
class EncodedRows:
    """The rows that fit, in the order given; `num_overlong` counts those that were left out as too long.

    `num_unlisted` counts the rows whose plan is not one of the catalogue: their loss is among all ids.
    """

    rows: tuple[EncodedRow, ...]
    num_overlong: int
    num_unlisted: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over every id of every row, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps([row.event_id, row.prompt_ids, row.target_ids]).encode())
            for ids in row.legal_ids or ():
                digest.update(len(ids).to_bytes(8, "big") + ids.astype("<i8").tobytes())
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
        TextRow(
            e.event_id,
            render_prompt(e.request, catalogue),
            render_plan(e.accepted_plan, e.request, catalogue),
            default_servings(e.request),
        )
        for e in chosen
    )


def encode_rows(
    tokenizer: Tokenizer,
    texts: Sequence[TextRow],
    *,
    max_tokens: int,
    max_overlong_share: float,
    split: str = "train",
    legal_tokens: LegalTokens | None = None,
) -> EncodedRows:
    """Encode every row once; a row longer than `max_tokens` is left out whole and counted, never cut.

    Args:
        tokenizer: the base's own.
        texts: the rows.
        max_tokens: of prompt and target together.
        max_overlong_share: how many may be longer.
        split: for the error's text.
        legal_tokens: what may stand at each place of a plan; None lets every token stand everywhere.

    Raises:
        TrainingError: the share of rows that are too long exceeds `max_overlong_share`.
        ContractError: the tokenizer has no end token.
    """
    rows = tuple(_encode_row(tokenizer, text, legal_tokens) for text in texts)
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
    num_unlisted = sum(row.legal_ids is None for row in fitting) if legal_tokens is not None else 0
    return EncodedRows(fitting, num_overlong, num_unlisted)


def _encode_row(tokenizer: Tokenizer, text: TextRow, legal_tokens: LegalTokens | None) -> EncodedRow:
    target_ids = tuple(encode_target(tokenizer, text.target))
    legal = legal_tokens(text.servings, target_ids) if legal_tokens is not None else None
    return EncodedRow(
        text.event_id,
        tuple(encode_prompt(tokenizer, text.prompt)),
        target_ids,
        None if legal is None else tuple(legal),
    )
