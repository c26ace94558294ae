"""The recipe catalogue: dishes with ingredients, prep time, cost, tags and allergens.

In: rows of the `recipes` table (or of `recipes.parquet`). Out: a frozen `Catalogue`, in id order, with unique titles.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from typing import Any

from planner.contracts.errors import CatalogueError


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One line of a dish's ingredients (or of a pantry); `quantity` in `unit`s, None when unknown."""

    name: str
    quantity: float | None = None
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A dish. `prep_time` in minutes; `cost_per_serving` in the budget's currency; None means unknown."""

    id: str
    title: str
    ingredients: tuple[Ingredient, ...] = ()
    prep_time: int | None = None
    cost_per_serving: float | None = None
    tags: tuple[str, ...] = ()
    allergens: tuple[str, ...] = ()
    active: bool = True

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Recipe:
        """Type one row of `recipes.parquet` (or the JSON form that `to_dict` gives)."""
        return cls(
            id=row["id"],
            title=row["title"],
            ingredients=tuple(
                Ingredient(i["name"], i.get("quantity"), i.get("unit")) for i in row.get("ingredients") or ()
            ),
            prep_time=row.get("prep_time"),
            cost_per_serving=row.get("cost_per_serving"),
            tags=tuple(row.get("tags") or ()),
            allergens=tuple(row.get("allergens") or ()),
            active=row.get("active", True) is not False,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as stored beside a registered model."""
        return {
            "id": self.id,
            "title": self.title,
            "ingredients": [{"name": i.name, "quantity": i.quantity, "unit": i.unit} for i in self.ingredients],
            "prep_time": self.prep_time,
            "cost_per_serving": self.cost_per_serving,
            "tags": list(self.tags),
            "allergens": list(self.allergens),
            "active": self.active,
        }


@dataclass(frozen=True)
class Catalogue:
    """All known recipes in id order; only `active` ones may be proposed."""

    recipes: tuple[Recipe, ...]
    by_id: Mapping[str, Recipe] = field(repr=False, compare=False)

    @classmethod
    def of(cls, recipes: Iterable[Recipe]) -> Catalogue:
        """Order the recipes by id and check them.

        Raises:
            CatalogueError: an id or a title (after `normal_title`) stands twice, or a title is empty.
        """
        ordered = tuple(sorted(recipes, key=lambda recipe: recipe.id))
        by_id: dict[str, Recipe] = {}
        by_title: dict[str, Recipe] = {}
        for recipe in ordered:
            if recipe.id in by_id:
                raise CatalogueError(f"Recipe id {recipe.id!r} stands twice in the catalogue.", id=recipe.id)
            by_id[recipe.id] = recipe
            title = normal_title(recipe.title or "")  # a site's view may hold nulls
            if not title:
                raise CatalogueError(f"Recipe {recipe.id!r} has no title. Give it one in `recipes`.", id=recipe.id)
            other = by_title.setdefault(title, recipe)
            if other is not recipe:
                raise CatalogueError(
                    f"Recipes {other.id!r} and {recipe.id!r} share the title {recipe.title!r}. "
                    "Titles are what the model reads and writes: make them distinct in `recipes`.",
                    ids=(other.id, recipe.id),
                    title=recipe.title,
                )
        return cls(ordered, by_id)

    @cached_property
    def by_title(self) -> Mapping[str, Recipe]:
        """Recipe of each title as it stands in the model's text (`text_title`)."""
        return {text_title(recipe.title): recipe for recipe in self.recipes}


def text_title(title: str) -> str:
    """The title as the model's text shows it: NFC, control characters and runs of white space as one space."""
    clean = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in title)
    return unicodedata.normalize("NFC", " ".join(clean.split()))


def normal_title(title: str) -> str:
    """What two titles must differ in: the text title without case."""
    return text_title(title).casefold()


def cents(amount: float | Decimal | None) -> int | None:
    """Money as whole cents, half a cent rounded up as PostgreSQL's `round` does; None stays None.

    A double is read by its shortest decimal text, so 2.675 is 268 cents and not 267.
    """
    if amount is None:
        return None
    exact = amount if isinstance(amount, Decimal) else Decimal(repr(float(amount)))
    return int((exact * 100).to_integral_value(rounding=ROUND_HALF_UP))
