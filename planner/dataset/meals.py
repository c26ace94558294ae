"""Logged plans as lists of numbers, one for each meal: small while a build works with them, texts again for the file.

In: the `meals` of plans as jsonb prints them. Out: lists of numbers in the plans' order, null where a plan breaks the
contract, equal to what `values.plan_meals` reads one by one; and plans of the contract from such lists.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from planner.contracts import schema
from planner.contracts.plan import DAY_INDEX, WEEKDAYS
from planner.dataset import values
from planner.dataset.arrays import offsets_of, per_list
from planner.dataset.coded import coded
from planner.dataset.columns import MEAL_PATTERN, parsed
from planner.dataset.pieces import Objects, in_place

NUMBERS = pa.list_(pa.int64())
# A number holds the recipe's place, three bits of the day and 31 of the servings.
_DAY_AT, _RECIPE_AT = 31, 34


class Meals:
    """Meals as numbers; threads may share it.

    Recipes are known by their place in the catalogue; those that are not in it get places behind it, as they come.

    Args:
        known: ids of the catalogue.
    """

    def __init__(self, known: Sequence[str]) -> None:
        self._num_known = len(known)
        self._lock = threading.Lock()
        self._recipes = pa.array(known, pa.string())
        self._objects = Objects(self._parse)

    def read(self, texts: pa.StringArray) -> pa.ListArray:
        """The plans whose meals the texts are, whatever their recipes."""
        coded = texts.dictionary_encode()  # what was accepted is often what was generated
        return self._distinct(coded.dictionary).take(coded.indices)

    def of_catalogue(self, lists: pa.ListArray) -> np.ndarray:
        """Per plan whether there is one and all of its recipes are in the catalogue."""
        unknown = per_list(lists, lists.flatten().to_numpy() >> _RECIPE_AT >= self._num_known, np.logical_or.reduceat)
        found: np.ndarray = lists.is_valid().to_numpy(zero_copy_only=False) & ~unknown
        return found

    def plans(self, lists: pa.ListArray) -> pa.StructArray:
        """Plans of the contract, their texts coded, null where there is no list."""
        numbers = lists.flatten().to_numpy()
        members = [
            coded(pa.array(list(DAY_INDEX), pa.string()), numbers >> _DAY_AT & 7),
            coded(self._recipes, numbers >> _RECIPE_AT),
            pa.array((numbers & (1 << _DAY_AT) - 1).astype(np.int32)),
        ]
        structs = pa.StructArray.from_arrays(members, [field.name for field in schema.MEAL])
        mask = lists.is_null() if lists.null_count else None
        meals = pa.ListArray.from_arrays(offsets_of(lists), structs, mask=mask)
        return pa.StructArray.from_arrays([meals], ["meals"], mask=mask)

    def _distinct(self, texts: pa.StringArray) -> pa.ListArray:
        found = self._objects.find(texts)
        numbers = pc.fill_null(found.values, 0).to_numpy()[found.codes]
        lists = pa.ListArray.from_arrays(pa.array(found.starts), pa.array(numbers))
        days = 1 << (numbers >> _DAY_AT & 7)
        twice = per_list(lists, days, np.add.reduceat) != per_list(lists, days, np.bitwise_or.reduceat)
        lists = pc.if_else(pa.array(twice), None, lists) if twice.any() else lists
        if found.usual.all():
            return lists
        odd = texts.filter(pa.array(~found.usual)).to_pylist()
        return in_place(found.usual, lists, self._one_by_one(odd))

    def _parse(self, insides: pa.StringArray) -> pa.Int64Array:
        usual = pc.match_substring_regex(insides, f"^(?:{MEAL_PATTERN})$")
        meals = parsed(pc.if_else(usual, insides, None), schema.MEAL)
        days = pc.fill_null(pc.index_in(meals.field("day"), pa.array(WEEKDAYS)), 0).to_numpy().astype(np.int64)
        recipes = self._places(pc.fill_null(meals.field("recipe_id"), ""))
        servings = pc.fill_null(meals.field("servings"), 0).to_numpy().astype(np.int64)
        numbers = recipes << _RECIPE_AT | days << _DAY_AT | servings
        return pa.array(numbers, mask=~usual.to_numpy(zero_copy_only=False))

    def _one_by_one(self, texts: Sequence[str | None]) -> pa.ListArray:
        plans = [values.plan_meals(text) for text in texts]
        # All at once: to look up one recipe costs as much as the catalogue is long.
        ids = [recipe for meals in plans for _, recipe, _ in meals or ()]
        places = iter(self._places(pa.array(ids, pa.string())).tolist())
        numbers = [
            meals and [next(places) << _RECIPE_AT | DAY_INDEX[day] << _DAY_AT | servings for day, _, servings in meals]
            for meals in plans
        ]
        return pa.array(numbers, NUMBERS)

    def _places(self, ids: pa.StringArray) -> np.ndarray:
        with self._lock:
            places = pc.index_in(ids, self._recipes)
            if places.null_count:
                strangers = ids.filter(places.is_null()).unique()
                self._recipes = pa.concat_arrays([self._recipes, strangers])
                places = pc.index_in(ids, self._recipes)
            found: np.ndarray = places.to_numpy().astype(np.int64)
            return found
