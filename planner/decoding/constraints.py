"""Which recipes a request allows, and whether any plan can satisfy it: decided before a model is called.

In: a catalogue (indexed once) and typed requests. Out: `Allowed`, a mask over the catalogue with how many recipes
survive each filter. The rules are those of `spec/evaluation.md`, "Constraints of a plan".

Texts match by words: case, accents and plural are ignored (`tomato` = `Tomatoes`), hyphens and spaces are the same,
and an excluded term stands in a text when its words stand there one after the other (`butter` in `peanut butter`,
not the other way round; `egg` not in `eggplant`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.contracts.catalogue import Catalogue, Recipe, cents
from planner.contracts.errors import ContractError
from planner.contracts.request import Request
from planner.decoding.day_limits import NAME, limits_of_week

UNKNOWN = -1  # prep time or cost that the catalogue does not know
MAX_COST = 10**9  # cents a serving; more is no price, and would overflow the 64 bits of a plan's sum
MAX_PHRASE = 8  # words of an indexed phrase; an index of all runs of a text would grow with the square of its length
MAX_KEPT = 256  # characters of a text whose words are kept for the next time: texts come from requests
_PLURALS = (
    ("s", ""), ("ies", "y"), ("ies", "i"), ("ves", "f"), ("ves", "fe"),
    *((f"{end}es", end) for end in ("s", "x", "z", "ch", "sh", "o")),
)  # fmt: skip
_APOSTROPHES = re.compile(r"['’`´]")
_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Recipes that a request allows.

    `mask` is a bool per recipe in catalogue order; `surviving` counts the recipes left after each filter, in the
    order applied; `budget` is in cents, None without a limit. Where single days have limits, `by_day` has the mask of
    each weekday, and `mask` what is allowed on some day; else it is empty.
    """

    mask: NDArray[np.bool_]
    surviving: tuple[tuple[str, int], ...]
    budget: int | None
    by_day: tuple[NDArray[np.bool_], ...] = ()

    @property
    def num_recipes(self) -> int:
        """How many recipes are allowed."""
        return int(np.count_nonzero(self.mask))


class ConstraintIndex:
    """The catalogue prepared for filtering: about 0.1 ms a request at 500 recipes.

    Args:
        catalogue: the dishes.
        max_prep_time_by_day: minutes by weekday, beside the request's own limit.

    Raises:
        ConfigError: that names no weekday, or no whole number.
    """

    def __init__(self, catalogue: Catalogue, *, max_prep_time_by_day: Mapping[str, int | None] | None = None) -> None:
        recipes = catalogue.recipes
        self.catalogue = catalogue
        self._limits = limits_of_week(max_prep_time_by_day)
        self.active = np.array([recipe.active for recipe in recipes], dtype=bool)
        self.prep_time = np.array(
            [UNKNOWN if recipe.prep_time is None else recipe.prep_time for recipe in recipes], dtype=np.int64
        )
        self.cost_cents = np.array([_cost(recipe) for recipe in recipes], dtype=np.int64)
        # An unknown prep time passes under no limit.
        self._slowness = np.where(self.prep_time == UNKNOWN, np.iinfo(np.int64).max, self.prep_time)
        self._priced = self.cost_cents != UNKNOWN
        self._by_cost = np.argsort(self.cost_cents, kind="stable")
        self._phrases = _phrases_of((row, _described(recipe)) for row, recipe in enumerate(recipes))
        self._allergens = _phrases_of((row, r.allergens) for row, r in enumerate(recipes))
        self._tags = _rows_by_tag(recipes)

    def allowed(self, request: Request) -> Allowed:
        """Filter the catalogue for a request; an unknown prep time or cost never passes under a limit.

        Raises:
            ContractError: the budget is no finite number.
        """
        limits = request.constraints
        budget = _budget(limits.budget)
        mask = self.active.copy()
        surviving = [("active", int(np.count_nonzero(mask)))]
        for term in dict.fromkeys(limits.excluded_ingredients):
            for rows in self._excluded(term):
                mask[rows] = False
        surviving.append(("excluded_ingredients", int(np.count_nonzero(mask))))
        for restriction in dict.fromkeys(request.household.restrictions):
            self._restrict(mask, restriction)
        surviving.append(("restrictions", int(np.count_nonzero(mask))))
        if limits.max_prep_time is not None:
            mask &= self._slowness <= limits.max_prep_time
            surviving.append(("max_prep_time", int(np.count_nonzero(mask))))
        if budget is not None:
            mask &= self._priced
            surviving.append(("known cost", int(np.count_nonzero(mask))))
        if not self._limits:
            return Allowed(mask, tuple(surviving), budget)
        # Days of one limit share a mask.
        masks = {m: mask if m is None else mask & (self._slowness <= m) & (m > 0) for m in set(self._limits)}
        mask = np.logical_or.reduce(list(masks.values()))
        surviving.append((NAME, int(np.count_nonzero(mask))))
        return Allowed(mask, tuple(surviving), budget, tuple(masks[m] for m in self._limits))

    def infeasible_reason(self, allowed: Allowed) -> str | None:
        """Why no plan can satisfy the request, or None: a single serving of one allowed recipe is a plan."""
        if not allowed.num_recipes:
            left = ", ".join(f"{count} after {name}" for name, count in allowed.surviving)
            return f"no_recipe_allowed: of {len(self.active)} recipes {left}"
        if allowed.budget is not None:
            cheapest = self._cheapest(allowed.mask)
            if cheapest > allowed.budget:
                return (
                    f"budget_below_minimum: one serving of the cheapest allowed recipe costs {cheapest / 100:.2f}, "
                    f"the budget is {allowed.budget / 100:.2f}"
                )
        return None

    def _cheapest(self, mask: NDArray[np.bool_]) -> int:
        """Cents of one serving of the cheapest allowed recipe; there is one."""
        for start in range(0, len(mask), 1024):  # in the order of costs the first is soon found
            rows = self._by_cost[start : start + 1024]
            found = np.flatnonzero(mask[rows])
            if len(found):
                return int(self.cost_cents[rows[found[0]]])
        raise AssertionError("no recipe is allowed")

    def _excluded(self, term: str) -> list[NDArray[np.int64]]:
        """Rows with a text that holds a term."""
        words = split_words(term)
        if len(words) > MAX_PHRASE:
            return [self._containing(words)]
        return _rows_of(self._phrases, _keys(words))

    def _containing(self, words: tuple[str, ...]) -> NDArray[np.int64]:
        """Rows with a text that holds a term of many words, found by reading them all: too rare to be indexed."""
        # Its first words narrow it down: a request of a megabyte must not cost a catalogue for each of its terms.
        rows = _rows_of(self._phrases, (" ".join(map(stem, words[:MAX_PHRASE])),))
        wanted = f" {' '.join(map(stem, words))} "
        recipes = self.catalogue.recipes
        held = [
            row
            for row in (rows[0].tolist() if rows else ())
            if any(wanted in f" {' '.join(map(stem, split_words(text)))} " for text in _described(recipes[row]))
        ]
        return np.array(held, dtype=np.int64)

    def _restrict(self, mask: NDArray[np.bool_], restriction: str) -> None:
        words = split_words(restriction)
        if len(words) > 1 and words[-1] in ("allergy", "allergies"):
            for rows in _rows_of(self._allergens, _keys(words[: min(len(words) - 1, MAX_PHRASE)])):
                mask[rows] = False
            return
        # A restriction that nobody knows, an empty one included, has no tag and so allows nothing.
        tagged = np.zeros(len(mask), dtype=bool)
        for tag, rows in self._tags.get(" ".join(map(stem, words)), ()):
            # Stems merge more than plurals do: on the safe side for what is excluded, not for what is asked for.
            if all(not singulars(one).isdisjoint(singulars(other)) for one, other in zip(words, tag, strict=True)):
                tagged[rows] = True
        mask &= tagged


def allowed_recipes(request: Request, catalogue: Catalogue) -> Allowed:
    """Filter a catalogue for one request; for many requests keep a `ConstraintIndex`."""
    return ConstraintIndex(catalogue).allowed(request)


def infeasible_reason(request: Request, catalogue: Catalogue) -> str | None:
    """Why no plan can satisfy the request (`no_recipe_allowed: …`, `budget_below_minimum: …`), or None."""
    index = ConstraintIndex(catalogue)
    return index.infeasible_reason(index.allowed(request))


def split_words(text: str) -> tuple[str, ...]:
    """The words of a text, case-folded and without accents; everything that is no letter or digit separates."""
    return _split_words(text) if len(text) > MAX_KEPT else _kept_words(text)


def stem(word: str) -> str:
    """One form for singular and plural: tomato(es), berry/berries, leaf/leaves, glass(es), gas(es), tofu(s)."""
    return _stem(word) if len(word) > MAX_KEPT else _kept_stem(word)


def singulars(word: str) -> frozenset[str]:
    """The word, and what it may be the plural of: the forms that make two words one where nothing else is merged."""
    if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
        return frozenset([word])
    return frozenset([word, *(word.removesuffix(many) + one for many, one in _PLURALS if word.endswith(many))])


def _split_words(text: str) -> tuple[str, ...]:
    plain = unicodedata.normalize("NFKD", _APOSTROPHES.sub("", text).casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c)).casefold()
    return tuple(word for word in _NO_WORD.split(plain) if word)


def _stem(word: str) -> str:
    for ending in ("s", "e", "s"):  # gases -> gase -> gas -> ga, where gas ends as well
        if word.endswith(ending) and not word.endswith("ss") and len(word) > 2:
            word = word[:-1]
    if word.endswith("i") and len(word) > 1:
        word = word[:-1] + "y"
    if word.endswith("v") and len(word) > 1:
        word = word[:-1] + "f"
    return word


_kept_words = lru_cache(maxsize=65536)(_split_words)
_kept_stem = lru_cache(maxsize=65536)(_stem)


def _keys(words: tuple[str, ...]) -> tuple[str, ...]:
    """What a term is looked up by: its stems, and its words joined (`soysauce` = `soy sauce`); nothing if blank."""
    return (" ".join(map(stem, words)), _joined(words)) if words else ()


def _rows_of(phrases: Mapping[str, NDArray[np.int64]], keys: Iterable[str]) -> list[NDArray[np.int64]]:
    return [phrases[key] for key in keys if key in phrases]


def _joined(words: tuple[str, ...]) -> str:
    return "".join(words[:-1]) + stem(words[-1])


def _described(recipe: Recipe) -> tuple[str, ...]:
    """The texts that an excluded ingredient is looked for in. A tag `X-free` says that there is no X in the dish."""
    tags = (tag for tag in recipe.tags if split_words(tag)[-1:] != ("free",) or len(split_words(tag)) == 1)
    return (*(ingredient.name for ingredient in recipe.ingredients), *recipe.allergens, *tags)


def _phrases_of(texts_by_row: Iterable[tuple[int, tuple[str, ...]]]) -> dict[str, NDArray[np.int64]]:
    """Rows of each run of consecutive words; texts repeat across recipes, so each is cut up once."""
    rows_of: dict[str, set[int]] = {}
    for row, texts in texts_by_row:
        for text in texts:
            for phrase in _runs(text):
                rows_of.setdefault(phrase, set()).add(row)
    return _arrays(rows_of)


@lru_cache(maxsize=65536)
def _runs(text: str) -> frozenset[str]:
    words = split_words(text)
    ends = range(1, MAX_PHRASE + 1)
    spans = [(a, a + n) for a in range(len(words)) for n in ends if a + n <= len(words)]
    stems = tuple(map(stem, words))
    return frozenset(" ".join(stems[a:b]) for a, b in spans) | frozenset(_joined(words[a:b]) for a, b in spans)


def _rows_by_tag(recipes: tuple[Recipe, ...]) -> dict[str, list[tuple[tuple[str, ...], NDArray[np.int64]]]]:
    """By the stems of a tag its words, and the rows of the recipes that carry it; several tags may have one stem."""
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, recipe in enumerate(recipes):
        for words in {split_words(tag) for tag in recipe.tags} - {()}:
            rows_of.setdefault(words, []).append(row)
    found: dict[str, list[tuple[tuple[str, ...], NDArray[np.int64]]]] = {}
    for words, rows in rows_of.items():
        found.setdefault(" ".join(map(stem, words)), []).append((words, np.array(rows, dtype=np.int64)))
    return found


def _arrays(rows_of: dict[str, set[int]]) -> dict[str, NDArray[np.int64]]:
    return {key: np.fromiter(sorted(rows), dtype=np.int64) for key, rows in rows_of.items()}


def _budget(budget: float | None) -> int | None:
    if budget is not None and not math.isfinite(budget):
        raise ContractError(
            f"Invalid request: constraints.budget is {budget}, not a finite number or null.", field="constraints.budget"
        )
    return cents(budget)


def _cost(recipe: Recipe) -> int:
    cost = recipe.cost_per_serving
    if cost is None or not math.isfinite(cost):
        return UNKNOWN
    amount = max(0, cents(cost) or 0)  # a negative price must not pay for other dishes
    return amount if amount <= MAX_COST else UNKNOWN
