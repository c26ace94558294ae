"""Which rows make a step, and how they lie in one forward pass without padding.

In: encoded rows. Out: the rows of each optimizer step, as a function of (seed, epoch, step) alone, and `Pack`s: the
tokens that all its rows begin with, once, and the rows' own tokens end to end; `planner.training.attention` keeps the
rows apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from planner.training.text import EncodedRow


@dataclass(frozen=True)
class Pack:
    """Rows of one forward pass. T tokens in all, N of them targets with a loss.

    First come `num_shared` tokens that all rows begin with, then each row's own, `lengths` of them. `source_N` is where
    each target token is predicted from: the position of the token before it. `legal` names the K token ids that stand
    to choice in the pack, ascending, and says by (N, K) which of them each target is chosen among; without it, a target
    is one of the whole vocabulary.
    """

    rows: tuple[EncodedRow, ...]
    num_shared: int
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


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of one step's dropout in one process."""
    text = f"step:{seed}:{step}" + (f":{rank}" if rank else "")
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def rows_of_step(rows: Sequence[EncodedRow], order: Sequence[int], index: int, batch_size: int) -> list[EncodedRow]:
    """The rows of step `index` (from 0) of an epoch; the last step may hold fewer than `batch_size`."""
    return [rows[i] for i in order[index * batch_size : (index + 1) * batch_size]]


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch, a partial last one included."""
    return -(-num_rows // batch_size)


def pack_rows(rows: Sequence[EncodedRow], *, most_tokens: int, device: torch.device | str = "cpu") -> list[Pack]:
    """Lay rows end to end into packs of at most `most_tokens`: the longest first, each into the first pack with room.

    What a pack's rows share is counted once for each of them here, so a pack may hold fewer tokens.
    """
    groups: list[list[EncodedRow]] = []
    rooms: list[int] = []
    for row in sorted(rows, key=lambda row: -row.num_tokens):
        # Rows without legal ids are packed apart: a pack's targets are all among its legal ids, or all among all.
        same = ((group[0].legal_ids is None) == (row.legal_ids is None) for group in groups)
        fitting = (index for index, fits in enumerate(same) if fits and rooms[index] >= row.num_tokens)
        index = next(fitting, len(groups))
        if index == len(groups):
            groups.append([])
            rooms.append(most_tokens)
        groups[index].append(row)
        rooms[index] -= row.num_tokens
    return [_pack(group, device) for group in groups]


def num_target_tokens(rows: Sequence[EncodedRow]) -> int:
    """Target tokens of the rows with a loss, end tokens included: what a loss sum is divided by."""
    return sum(len(row.scored) for row in rows)


def _pack(rows: Sequence[EncodedRow], device: torch.device | str) -> Pack:
    # Attending to shared tokens takes a mask, which CUDA's flash kernels do not know; nor does the memory plan.
    num_shared = _num_shared(rows) if torch.device(device).type == "cpu" else 0
    ids: list[int] = list(rows[0].prompt_ids[:num_shared])
    positions: list[int] = list(range(num_shared))
    source: list[int] = []
    labels: list[int] = []
    for row in rows:
        start = len(ids) + len(row.prompt_ids) - num_shared - 1
        source.extend(start + index for index in row.scored)
        labels.extend(row.target_ids[index] for index in row.scored)
        ids.extend(row.prompt_ids[num_shared:] + row.target_ids)
        positions.extend(range(num_shared, row.num_tokens))

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Pack(
        rows=tuple(rows),
        num_shared=num_shared,
        lengths=tuple(row.num_tokens - num_shared for row in rows),
        ids_1T=tensor(ids)[None],
        positions_1T=tensor(positions)[None],
        source_N=tensor(source),
        labels_N=tensor(labels),
        legal=_legal(rows, device),
    )


def _num_shared(rows: Sequence[EncodedRow]) -> int:
    """How many tokens all prompts begin with; a row keeps one of its own, which its first target is predicted from."""
    if len(rows) == 1:
        return 0
    prompts = [row.prompt_ids for row in rows]
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in same), min(map(len, prompts)) - 1)


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
