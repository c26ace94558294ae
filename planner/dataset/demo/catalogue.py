"""The demo's catalogue: dishes and ingredients from two YAML files, with diets and allergens derived.

In: `dishes.yaml` (quantities for four servings) and `ingredients.yaml` (what an ingredient is and which purchases
count as one). Out: a frozen `DemoCatalogue` of dishes in id order. Diet tags and allergens are computed from the
ingredients and written down nowhere, so they cannot contradict them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from planner.contracts.catalogue import Ingredient, Recipe
from planner.contracts.errors import CatalogueError

SERVINGS = 4  # the quantities of `dishes.yaml` are for this many
ALLERGENS = ("gluten", "dairy", "eggs", "nuts", "peanuts", "fish", "shellfish", "soy", "sesame")
MEAT = ("beef", "pork", "poultry", "lamb")
KINDS = (*MEAT, "fish", "shellfish", "dairy", "egg", "honey", "plant")
_AMOUNT = re.compile(r"(.+) (\d+(?:\.\d+)?)(g|ml)?")


@dataclass(frozen=True, slots=True)
class Food:
    """One ingredient; purchases of `stock` stand for it, and one bought piece holds `pack` units."""

    name: str
    stock: str
    product_types: tuple[tuple[str, str], ...]
    pack: float
    unit: str
    shelf_days: int
    kind: str
    allergens: frozenset[str]
    staple: bool


@dataclass(frozen=True, slots=True)
class Dish:
    """One dish; `amounts` are (food, quantity for four servings in the food's unit), the main ingredient first."""

    id: str
    title: str
    cuisine: str
    prep_time: int
    amounts: tuple[tuple[Food, float], ...]

    @property
    def main(self) -> Food:
        """The ingredient that a household must have bought to have cooked the dish."""
        return self.amounts[0][0]

    @property
    def keys(self) -> tuple[Food, ...]:
        """The ingredients that speak for this dish: all but what every kitchen keeps."""
        return tuple(food for food, _ in self.amounts if food is self.main or not food.staple)

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of food in the dish, of `KINDS`."""
        return frozenset(food.kind for food, _ in self.amounts)

    @property
    def allergens(self) -> tuple[str, ...]:
        """Union of the ingredients' allergens, in the order of `ALLERGENS`."""
        present = frozenset[str]().union(*(food.allergens for food, _ in self.amounts))
        return tuple(name for name in ALLERGENS if name in present)

    @property
    def tags(self) -> tuple[str, ...]:
        """Cuisine, the diets that every ingredient allows, and the kinds of meat and fish in it."""
        return (self.cuisine, *_diets(self.kinds, self.allergens), *_contents(self.kinds), *_speed(self.prep_time))


@dataclass(frozen=True)
class DemoCatalogue:
    """All foods by name and all dishes in id order."""

    foods: Mapping[str, Food]
    dishes: tuple[Dish, ...]

    @cached_property
    def stocks(self) -> tuple[Food, ...]:
        """The foods that are bought under their own name, in name order."""
        return tuple(sorted((f for f in self.foods.values() if f.stock == f.name), key=lambda food: food.name))

    def recipes(self, prices: Mapping[str, float]) -> tuple[Recipe, ...]:
        """The rows of `recipes`; quantities are for one recipe of four servings.

        Args:
            prices: price of one bought piece of each stock.
        """
        return tuple(
            Recipe(
                id=dish.id,
                title=dish.title,
                ingredients=tuple(Ingredient(food.name, amount, food.unit) for food, amount in dish.amounts),
                prep_time=dish.prep_time,
                cost_per_serving=cost_per_serving(dish, prices),
                tags=dish.tags,
                allergens=dish.allergens,
            )
            for dish in self.dishes
        )


def cost_per_serving(dish: Dish, prices: Mapping[str, float]) -> float:
    """What one serving uses up, at the price of a bought piece over what the piece holds; in dollars, whole cents."""
    return round(sum(amount / food.pack * prices[food.stock] for food, amount in dish.amounts) / SERVINGS, 2)


@cache
def load_catalogue(folder: Path | None = None) -> DemoCatalogue:
    """Read and check both files.

    Args:
        folder: where the files lie; the demo's own by default.

    Raises:
        CatalogueError: an ingredient is unknown, an amount cannot be read, a unit is not the ingredient's, or a
            title stands twice.
    """
    folder = folder or Path(__file__).parent
    raw_foods = yaml.safe_load((folder / "ingredients.yaml").read_text(encoding="utf-8"))
    foods = {name: _food(name, raw_foods) for name in raw_foods}
    cuisines = yaml.safe_load((folder / "dishes.yaml").read_text(encoding="utf-8"))
    dishes = [_dish(title, cuisine, row, foods) for cuisine, rows in cuisines.items() for title, row in rows.items()]
    by_id = {dish.id: dish for dish in dishes}
    if len(by_id) != len(dishes):
        raise CatalogueError("Two dishes of the demo share a title. Make the titles in dishes.yaml distinct.")
    return DemoCatalogue(foods, tuple(by_id[key] for key in sorted(by_id)))


def slug(title: str) -> str:
    """The id of a dish: its title in lower case with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("'", "")).strip("-")


def _food(name: str, rows: Mapping[str, Any]) -> Food:
    row = rows[name]
    stock = row.get("as", name)
    base = rows.get(stock)
    if base is None or "as" in base:
        raise CatalogueError(
            f"Ingredient {name!r} stands for {stock!r}, which buys nothing itself. Fix ingredients.yaml."
        )
    merged = {**base, **row}
    pack, unit = str(merged["pack"]).split()
    allergens = frozenset(merged.get("allergens", ()))
    if merged["kind"] not in KINDS or not allergens <= set(ALLERGENS) or unit not in ("g", "ml", "ct"):
        raise CatalogueError(f"Ingredient {name!r} has an unknown kind, allergen or unit. Fix ingredients.yaml.")
    return Food(
        name=name,
        stock=stock,
        product_types=tuple(_product_type(text) for text in base["match"]),
        pack=float(pack),
        unit=unit,
        shelf_days=int(merged["days"]),
        kind=merged["kind"],
        allergens=allergens,
        staple=bool(merged.get("staple", False)),
    )


def _product_type(text: str) -> tuple[str, str]:
    category, _, product_type = text.partition("|")
    return category, product_type


def _dish(title: str, cuisine: str, row: Mapping[str, Any], foods: Mapping[str, Food]) -> Dish:
    amounts = tuple(_amount(title, text, foods) for text in row["for4"])
    return Dish(slug(title), title, cuisine, int(row["minutes"]), amounts)


def _amount(title: str, text: str, foods: Mapping[str, Food]) -> tuple[Food, float]:
    match = _AMOUNT.fullmatch(text)
    food = foods.get(match[1]) if match else None
    if match is None or food is None or (match[3] or "ct") != food.unit:
        raise CatalogueError(
            f"{title!r} needs {text!r}: unknown ingredient or unit. Fix dishes.yaml or ingredients.yaml."
        )
    return food, float(match[2])


def _diets(kinds: frozenset[str], allergens: tuple[str, ...]) -> list[str]:
    meatless = not kinds & set(MEAT)
    seafood = bool(kinds & {"fish", "shellfish"})
    diets = []
    if meatless and not seafood:
        diets.append("vegetarian")
        if not kinds & {"dairy", "egg", "honey"}:
            diets.append("vegan")
    if meatless:
        diets.append("pescatarian")
    diets += [f"{name}-free" for name in ("gluten", "dairy") if name not in allergens]
    return diets


def _contents(kinds: frozenset[str]) -> list[str]:
    found = [kind for kind in (*MEAT, "fish", "shellfish") if kind in kinds]
    return found + (["seafood"] if kinds & {"fish", "shellfish"} else [])


def _speed(prep_time: int) -> list[str]:
    return ["quick"] if prep_time <= 20 else []
