"""The catalogue as a trie over token sequences, and the token pieces that a plan's lines are made of.

In: a catalogue and the tokenizer in use. Out: a `CatalogueTrie`. Its leaves are what can stand behind `Mon:`:
` Title` with its newline (the household's usual servings), or ` Title x` with a number to follow. They are sorted by
token sequence, so that a node is a range of leaves at a depth, and everything below it a slice.

The pieces are cut from tokenised whole lines and proven to join to exactly the tokens that training saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.contracts.catalogue import Catalogue, text_title
from planner.contracts.errors import CatalogueError, ModelError
from planner.contracts.prompt import DAY_LABELS, title_collisions

MAX_SERVINGS = 200  # of one dish; a plan for more eats the household's usual servings
USUAL = 0  # a leaf of the usual servings
NUMBER = -1  # a leaf that a number follows
PAD = -1
RETIRED = -1  # the row of a title that may not be proposed, but must not be spelled as another dish's servings either
NEVER = 2**62  # a price above any budget
MANY = 1024  # leaves of a node; what is below fewer is looked through in a few microseconds
_KEPT_SIZES = 16  # household sizes whose prices are kept
_PROBE = 12  # two digits: shows how a number joins a title
_ALL_DAYS_UP_TO = 2000  # titles that are proven under every day's label; larger catalogues under one each

Pieces = tuple[int, ...]


@dataclass(frozen=True)
class CatalogueTrie:
    """Leaves in token order: `tokens` (leaves, depth) int32 padded with -1, `lengths`, and per leaf what it means.

    `recipe` is the row in the catalogue; `servings` is `USUAL`, `NUMBER`, or the number that the leaf itself spells.
    `labels` are the tokens of `Mon:` … `Sun:`, `numbers[n]` those of the number n with its newline.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    recipe: NDArray[np.int64]
    servings: NDArray[np.int64]
    labels: tuple[Pieces, ...]
    numbers: tuple[Pieces, ...]
    end: int
    _nodes: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict, repr=False)

    _prices: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict, repr=False)

    @property
    def num_leaves(self) -> int:
        """How many leaves there are: two a dish, more where a title reads like another one with servings."""
        return len(self.lengths)

    def children(self, low: int, high: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens that follow at a node, ascending, and where the leaves of each start; kept once computed."""
        # (low, depth) names a node: two nodes of one depth start at different leaves.
        known = self._nodes.get((low, depth))
        if known is None:
            column = self.tokens[low:high, depth]
            starts = np.concatenate(([0], np.flatnonzero(np.diff(column)) + 1))
            known = self._nodes[low, depth] = (column[starts].astype(np.int64), starts + low)
        return known

    def prepare(self) -> None:
        """Compute the children of every node with many leaves now, so that no request waits for it."""
        nodes = [(0, self.num_leaves, 0)]
        while nodes:
            low, high, depth = nodes.pop()
            if high - low > MANY:
                starts = self.children(low, high, depth)[1].tolist()
                nodes += [(start, stop, depth + 1) for start, stop in zip(starts, [*starts[1:], high], strict=True)]

    def shared(self, low: int, high: int, depth: int) -> list[int]:
        """The tokens that all leaves of a node go on with; of a single leaf all that are left."""
        first, stop = self.tokens[low, depth:], int(self.lengths[low]) - depth
        if high - low > 1:
            # Sorted, and none is the beginning of another: where the first and the last part, the node branches.
            stop = int((first != self.tokens[high - 1, depth:]).argmax())
        shared: list[int] = first[:stop].tolist()
        return shared

    def prices(self, cost_cents: NDArray[np.int64], usual: int) -> NDArray[np.int64]:
        """The least that each leaf costs for a household of `usual` servings, `NEVER` where the text never says it.

        Kept for the last few sizes; a request marks what it does not allow in a copy. An unknown cost, negative, is 0:
        it is allowed only where there is no budget.
        """
        known = self._prices.get(usual)
        if known is None or known[0] is not cost_cents:
            kind = self.servings
            least = np.where(kind == USUAL, usual, np.where(kind == NUMBER, 2 if usual == 1 else 1, kind))
            # The text never spells the usual servings as a number, as `render_plan` never does.
            spelled = (kind <= 0) | ((kind != usual) & (kind <= servings_bound(usual)))
            prices = np.where(spelled, np.maximum(cost_cents, 0)[self.recipe] * least, NEVER)
            if len(self._prices) >= _KEPT_SIZES:
                self._prices.clear()
            known = self._prices[usual] = (cost_cents, prices)
        return known[1]

    def leaves_of(self, row: int) -> NDArray[np.int64]:
        """The leaves of one recipe."""
        order, sorted_recipe = self._by_recipe
        low, high = np.searchsorted(sorted_recipe, (row, row + 1))
        return order[low:high]

    @cached_property
    def _by_recipe(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.recipe, kind="stable")
        return order, self.recipe[order]


def servings_bound(usual: int) -> int:
    """The most servings that a model may choose as a number: twice the household, at least 12, at most 200."""
    return min(max(12, 2 * usual), MAX_SERVINGS)


def build_trie(catalogue: Catalogue, tokenizer: Any) -> CatalogueTrie:
    """Tokenise the active dishes and prove that their pieces join as in the training text.

    Raises:
        CatalogueError: no recipe is active.
        ModelError: a title cannot be written and read back with this tokenizer; names it.
    """
    rows = [row for row, recipe in enumerate(catalogue.recipes) if recipe.active]
    if not rows:
        raise CatalogueError("No recipe of the catalogue is active, so nothing can be planned. Check `recipes`.")
    titles = [text_title(catalogue.recipes[row].title) for row in rows]
    labels = tuple(tuple(ids) for ids in _encode(tokenizer, [f"{label}:" for label in DAY_LABELS]))
    numbers = ((), *(tuple(ids) for ids in _encode(tokenizer, [f"{n}\n" for n in range(1, MAX_SERVINGS + 1)])))
    usual = [_cut(ids, labels[0], (), t) for ids, t in _lines(tokenizer, titles, "")]
    counted = [_cut(ids, labels[0], numbers[_PROBE], t) for ids, t in _lines(tokenizer, titles, f" x{_PROBE}")]
    special = set(tokenizer.all_special_ids)
    for title, piece in zip(titles, usual, strict=True):
        text = tokenizer.decode([*labels[0], *piece], clean_up_tokenization_spaces=False)
        if special.intersection(piece) or text != f"{DAY_LABELS[0]}: {title}\n":
            raise _unreadable(title)
    _prove(tokenizer, titles, usual, counted, labels, numbers)
    leaves = [(piece, row, USUAL) for piece, row in zip(usual, rows, strict=True)]
    leaves += [(piece, row, NUMBER) for piece, row in zip(counted, rows, strict=True)]
    retired = [title for title in title_collisions(catalogue) if not catalogue.by_title[title].active]
    leaves += [(_cut(ids, labels[0], (), title), RETIRED, USUAL) for ids, title in _lines(tokenizer, retired, "")]
    leaves = [leaf for leaf in _spell_out_prefixes(leaves, numbers) if leaf[1] != RETIRED]
    trie = _assemble(leaves, labels, numbers, tokenizer.eos_token_id)
    trie.prepare()
    return trie


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return encoded


def _lines(tokenizer: Any, titles: Sequence[str], ending: str) -> Iterable[tuple[list[int], str]]:
    lines = [f"{DAY_LABELS[0]}: {title}{ending}\n" for title in titles]
    return zip(_encode(tokenizer, lines), titles, strict=True)


def _cut(ids: list[int], front: Pieces, back: Pieces, title: str) -> Pieces:
    """What of a line's tokens lies between its label and its number."""
    stop = len(ids) - len(back)
    if tuple(ids[: len(front)]) != front or tuple(ids[stop:]) != back or stop <= len(front):
        raise _unreadable(title)
    return tuple(ids[len(front) : stop])


def _prove(
    tokenizer: Any,
    titles: Sequence[str],
    usual: Sequence[Pieces],
    counted: Sequence[Pieces],
    labels: Sequence[Pieces],
    numbers: Sequence[Pieces],
) -> None:
    """Tokenise weeks of titles, with and without servings, and compare with the joined pieces."""
    turns = len(labels) if len(titles) <= _ALL_DAYS_UP_TO else 1
    for turn in range(turns):
        for with_number in (False, True):
            texts, pieces = [], []
            for week in _weeks(range(len(titles))):
                text, joined = "", []
                for place, index in enumerate(week):
                    day = (place + turn) % len(labels)  # so that each title stands under each label
                    servings = index % MAX_SERVINGS + 1 if with_number else 0
                    text += f"{DAY_LABELS[day]}: {titles[index]}{f' x{servings}' if servings else ''}\n"
                    joined += [*labels[day], *(counted[index] if servings else usual[index]), *numbers[servings]]
                texts.append(text)
                pieces.append(joined)
            for text, ids, joined in zip(texts, _encode(tokenizer, texts), pieces, strict=True):
                if ids != joined:
                    line = next((i for i, _ in enumerate(joined) if ids[: i + 1] != joined[: i + 1]), 0)
                    raise _unreadable(tokenizer.decode(joined[: line + 8]).splitlines()[-1], text)


def _weeks(order: Sequence[int]) -> Iterable[Sequence[int]]:
    """Cut a list into weeks of seven."""
    return (order[start : start + 7] for start in range(0, len(order), 7))


def _spell_out_prefixes(
    leaves: list[tuple[Pieces, int, int]], numbers: Sequence[Pieces]
) -> list[tuple[Pieces, int, int]]:
    """Where ` Soup x` is the beginning of another title (`Soup x2`), replace it by one leaf for each number.

    A number that would spell another title is left out: that text means the title.
    """
    leaves.sort()
    taken = {piece for piece, _, _ in leaves}
    result: list[tuple[Pieces, int, int]] = []
    for index, (piece, row, servings) in enumerate(leaves):
        following = leaves[index + 1][0] if index + 1 < len(leaves) else ()
        if following[: len(piece)] != piece:
            result.append((piece, row, servings))
        elif servings == NUMBER:
            spelled = ((piece + numbers[n], row, n) for n in range(1, MAX_SERVINGS + 1))
            result.extend(leaf for leaf in spelled if leaf[0] not in taken)
        else:
            raise ModelError("Two titles of the catalogue have the same tokens. Make them distinct in `recipes`.")
    result.sort()
    return result


def _assemble(
    leaves: list[tuple[Pieces, int, int]], labels: tuple[Pieces, ...], numbers: tuple[Pieces, ...], end: int
) -> CatalogueTrie:
    lengths = np.array([len(piece) for piece, _, _ in leaves], dtype=np.int32)
    tokens = np.full((len(leaves), int(lengths.max())), PAD, dtype=np.int32)
    for index, (piece, _, _) in enumerate(leaves):
        tokens[index, : len(piece)] = piece
    recipe = np.array([row for _, row, _ in leaves], dtype=np.int64)
    servings = np.array([count for _, _, count in leaves], dtype=np.int64)
    return CatalogueTrie(tokens, lengths, recipe, servings, labels, numbers, end)


def _unreadable(title: str, week: str | None = None) -> ModelError:
    return ModelError(
        f"The title {title[:200]!r} cannot be written and read back with the base model's tokenizer. "
        "Change that title in `recipes`, or set its recipe inactive.",
        title=title,
        week=week,
    )
