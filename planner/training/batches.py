"""Which rows make a step, and how they lie in one forward pass without padding.

In: encoded rows. Out: the rows of each optimizer step, as a function of (seed, epoch, step) alone, and `Pack`s: rows
laid end to end, each with positions that start at 0; `planner.training.attention` keeps them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from planner.training.text import EncodedRow


@dataclass(frozen=True)
class Pack:
    """Rows of one forward pass, end to end. T tokens in all, N of them targets with a loss.

    `source_N` is where each target token is predicted from: the position of the token before it. `legal` names the K
    token ids that stand to choice in the pack, ascending, and says by (N, K) which of them each target is chosen
    among; without it, a target is one of the whole vocabulary.
    """

    rows: tuple[EncodedRow, ...]
    lengths: tuple[int, ...]
    ids_1T: torch.Tensor
    positions_1T: torch.Tensor
    source_N: torch.Tensor
    labels_N: torch.Tensor
    legal: tuple[torch.Tensor, torch.Tensor] | None


def epoch_order(num_rows: int, *, seed: int, epoch: int) -> list[int]:
    """The order of the rows in one epoch (1, 2, …): the same in every process, without a state to save."""
    order = list(range(num_rows))
    Random(sha256(f"order:{seed}:{epoch}".encode()).digest()).shuffle(order)
    return order


def rows_of_step(rows: Sequence[EncodedRow], order: Sequence[int], index: int, batch_size: int) -> list[EncodedRow]:
    """The rows of step `index` (from 0) of an epoch; the last step may hold fewer than `batch_size`."""
    return [rows[i] for i in order[index * batch_size : (index + 1) * batch_size]]


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch, a partial last one included."""
    return -(-num_rows // batch_size)


def pack_rows(rows: Sequence[EncodedRow], *, most_tokens: int, device: torch.device | str = "cpu") -> list[Pack]:
    """Lay rows end to end, in the order given, into as few packs of at most `most_tokens` as that order allows."""
    groups: list[list[EncodedRow]] = []
    room = 0
    for row in rows:
        # Rows without legal ids are packed apart: a pack's targets are all among its legal ids, or all among all.
        if not groups or row.num_tokens > room or (row.legal_ids is None) != (groups[-1][-1].legal_ids is None):
            groups.append([])
            room = most_tokens
        groups[-1].append(row)
        room -= row.num_tokens
    return [_pack(group, device) for group in groups]


def num_target_tokens(rows: Sequence[EncodedRow]) -> int:
    """Target tokens of the rows with a loss, end tokens included: what a loss sum is divided by."""
    return sum(len(row.scored) for row in rows)


def _pack(rows: Sequence[EncodedRow], device: torch.device | str) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    labels: list[int] = []
    for row in rows:
        start = len(ids) + len(row.prompt_ids) - 1
        source.extend(start + index for index in row.scored)
        labels.extend(row.target_ids[index] for index in row.scored)
        ids.extend(row.prompt_ids + row.target_ids)
        positions.extend(range(row.num_tokens))

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Pack(
        rows=tuple(rows),
        lengths=tuple(row.num_tokens for row in rows),
        ids_1T=tensor(ids)[None],
        positions_1T=tensor(positions)[None],
        source_N=tensor(source),
        labels_N=tensor(labels),
        legal=_legal(rows, device),
    )


def _legal(rows: Sequence[EncodedRow], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The ids to choose among, and by target which of them; None where a row's targets are among all ids."""
    sets: list[NDArray[np.int64]] = []
    for row in rows:
        if row.legal_ids is None:
            return None
        sets.extend(row.legal_ids[index] for index in row.scored)
    ids = np.unique(np.concatenate(sets)) if sets else np.empty(0, dtype=np.int64)
    mask = np.zeros((len(sets), len(ids)), dtype=bool)
    for index, legal in enumerate(sets):
        mask[index, np.searchsorted(ids, legal)] = True
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
