"""Synthetic catalogues of any size and requests for them, for benchmarks: titles that share words, as real ones do."""

from __future__ import annotations

import random

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe
from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.request import Constraints, Household, Request

MAINS = """Chicken Beef Lentil Tofu Salmon Mushroom Turkey Bean Egg Prawn Pork Chickpea Lamb Cod Tuna
Pumpkin Duck Halloumi Broccoli Spinach Potato Trout Veal Okra Quinoa Cauliflower Zucchini Crab Ham Leek""".split()
DISHES = """Tacos Curry Soup Stew Salad Pasta Stir-Fry Pie Burgers Risotto Wraps Bowl Skewers Casserole Chili Gratin "
          "Noodles Pizza Fajitas Meatballs Lasagna Pilaf Quiche Ragout Sandwiches""".split()
STYLES = ("", "Baked ", "Spicy ", "Creamy ", "Smoked ", "Grilled ", "Roasted ", "Quick ", "Thai ", "Greek ", "Cajun ")
SIDES = """rice couscous peas carrots beans fries herbs lemon garlic ginger honey mustard feta pesto olives peppers
corn kale leeks onions tomatoes almonds sesame coconut yogurt""".split()


def menu(size: int) -> Catalogue:
    """`size` dishes with distinct titles (up to 206,250), the same ones for the same size."""
    rng = random.Random(size)
    every = [(s, m, d, side) for s in STYLES for m in MAINS for d in DISHES for side in SIDES]
    recipes = []
    for index, (style, main, dish, side) in enumerate(rng.sample(every, size)):
        extras = rng.sample(SIDES, 4)
        recipes.append(
            Recipe(
                id=f"r{index:06d}",
                title=f"{style}{main} {dish} with {side}",
                ingredients=tuple(Ingredient(name, 1.0, "unit") for name in (main.lower(), side, *extras)),
                prep_time=rng.randrange(10, 91, 5),
                cost_per_serving=rng.randrange(80, 900) / 100,
                tags=tuple(rng.sample(("vegetarian", "quick", "family", "spicy"), 2)),
                allergens=("fish",) if main in ("Salmon", "Cod", "Tuna", "Trout") else (),
            )
        )
    return Catalogue.of(recipes)


def requests_for(catalogue: Catalogue, count: int) -> list[Request]:
    """`count` requests with limits, a pantry and a previous plan; about half of the catalogue is allowed."""
    rng = random.Random(count)
    found = []
    for index in range(count):
        size = rng.choice((2, 2, 3, 4))
        days = sorted(rng.sample(range(7), 5))
        previous = (Meal(WEEKDAYS[day], rng.choice(catalogue.recipes).id, size) for day in days)
        found.append(
            Request(
                Household(f"h{index}", size, ("quick meals", "spicy"), ("fish-allergy",)),
                tuple(Ingredient(name, 1.0, "unit") for name in rng.sample(SIDES, 8)),
                Constraints(30.0 * size, 75, (rng.choice(SIDES), rng.choice(MAINS).lower())),
                previous_plan=Plan(tuple(previous)),
            )
        )
    return found
