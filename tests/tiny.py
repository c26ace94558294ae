"""A tiny random-weight base model, catalogue, requests and examples, for the tests of every room that needs a model.

All of it is built offline from a seed in well under two seconds: `tiny_base_folder` writes a Hugging Face folder
(llama architecture, a real byte-level BPE tokenizer with an end token) that `resolve_base` takes like any other.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from planner.contracts.catalogue import Catalogue, Ingredient, Recipe
from planner.contracts.example import Example
from planner.contracts.plan import WEEKDAYS, Edit, Meal, Plan
from planner.contracts.prompt import render_plan, render_prompt
from planner.contracts.request import Constraints, Household, Request
from planner.contracts.split import split_of

MAINS = (
    "Chicken", "Beef", "Lentil", "Tofu", "Salmon", "Mushroom", "Turkey", "Bean", "Egg", "Prawn", "Pork", "Chickpea",
)  # fmt: skip
DISHES = ("Tacos", "Curry", "Soup", "Stew", "Salad", "Pasta", "Stir-Fry", "Pie", "Burgers", "Risotto", "Wraps", "Bowl")
EXTRAS = ("tomatoes", "rice", "onion", "butter", "peanut butter", "cheddar cheese", "soy sauce", "carrots", "eggs")
ALLERGENS = {"Salmon": "fish", "Prawn": "shellfish", "Egg": "eggs", "Tofu": "soy"}
PLANT = {"Lentil", "Tofu", "Mushroom", "Bean", "Chickpea"}


def tiny_catalogue(n: int = 40) -> Catalogue:
    """`n` dishes with distinct titles, varied ingredients, costs of 1.10 to 6.00 and times of 10 to 70 minutes."""
    rng = random.Random(17)
    recipes = []
    for index in range(n):
        main = MAINS[index % len(MAINS)]
        dish = DISHES[(index // len(MAINS)) % len(DISHES)]
        batch = index // (len(MAINS) * len(DISHES))
        title = f"{main} {dish}" + (f" No. {batch + 1}" if batch else "")
        extras = rng.sample(EXTRAS, 3)
        found = [ALLERGENS[main]] if main in ALLERGENS else []
        found += ["nuts"] if "peanut butter" in extras else []
        recipes.append(
            Recipe(
                id=f"r{index:05d}",
                title=title,
                ingredients=tuple(Ingredient(name, 1.0, "unit") for name in (main.lower(), *extras)),
                prep_time=rng.randrange(10, 71, 5),
                cost_per_serving=rng.randrange(110, 601, 5) / 100,
                tags=("vegetarian", "quick") if main in PLANT else ("family",),
                allergens=tuple(found),
            )
        )
    return Catalogue.of(recipes)


def tiny_requests(n: int, seed: int = 0, *, catalogue: Catalogue | None = None) -> list[Request]:
    """`n` feasible-looking requests of distinct households; about half carry limits, some a previous plan."""
    catalogue = catalogue or tiny_catalogue()
    rng = random.Random(seed)
    return [_request(rng, f"h{seed}-{index}", catalogue) for index in range(n)]


def tiny_examples(n: int, seed: int = 0, *, catalogue: Catalogue | None = None) -> list[Example]:
    """`n` dataset rows: two weeks per household, the accepted plan with one swap against the generated one."""
    catalogue = catalogue or tiny_catalogue()
    rng = random.Random(seed)
    start = datetime(2025, 1, 3, 18, tzinfo=UTC)
    examples = []
    for index in range(n):
        request = _request(rng, f"h{seed}-{index // 2}", catalogue)
        generated = _plan(rng, request, catalogue)
        accepted, edits = _swapped(rng, generated, catalogue)
        generated_at = start + timedelta(days=7 * (index % 2), minutes=index)
        examples.append(
            Example(
                event_id=f"e{seed}-{index:05d}",
                plan_id=f"p{seed}-{index:05d}",
                request=request,
                accepted_plan=accepted,
                user_edits=edits,
                generated_plan=generated,
                timestamp=generated_at + timedelta(minutes=9),
                generated_at=generated_at,
                policy_version_id=None,
                region=rng.choice(("north", "south")),
                split=split_of(request.household.id),
            )
        )
    return examples


def tiny_base_folder(folder: Path, *, seed: int = 0, vocab_size: int = 800) -> Path:
    """Write the tiny base model into `folder` (made if missing; built once) and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tiny_tokenizer(vocab_size)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        # Wider than the default 0.02, so that greedy choices differ clearly between requests.
        initializer_range=0.25,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


def _tiny_tokenizer(vocab_size: int):  # noqa: ANN202 - a Hugging Face type
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    catalogue = tiny_catalogue(144)
    rng = random.Random(3)
    requests = tiny_requests(120, 3, catalogue=catalogue)
    return [
        render_prompt(request, catalogue) + render_plan(_plan(rng, request, catalogue), request, catalogue)
        for request in requests
    ]


def _request(rng: random.Random, household_id: str, catalogue: Catalogue) -> Request:
    size = rng.choice((1, 2, 2, 3, 4, 5))
    limited = rng.random() < 0.5
    household = Household(
        household_id,
        size,
        ("quick meals",) if rng.random() < 0.3 else (),
        tuple(rng.sample(("vegetarian", "nut-allergy", "fish-allergy"), 1)) if rng.random() < 0.4 else (),
    )
    request = Request(
        household,
        pantry=tuple(Ingredient(name, float(rng.randrange(1, 5)), "unit") for name in rng.sample(EXTRAS, 3)),
        constraints=Constraints(
            budget=float(rng.randrange(10, 30) * size) if limited else None,
            max_prep_time=rng.choice((40, 50, 60)) if limited else None,
            excluded_ingredients=("shellfish",) if rng.random() < 0.3 else (),
        ),
        workflow_type=rng.choice(("plan-first", "meal-first", "pantry-first")),
        mode=rng.choice(("autopilot", "exploratory", "constrained")),
    )
    if rng.random() < 0.6:
        request = Request(
            household,
            request.pantry,
            request.constraints,
            request.workflow_type,
            request.mode,
            _plan(rng, request, catalogue),
        )
    return request


def _plan(rng: random.Random, request: Request, catalogue: Catalogue) -> Plan:
    size = request.household.size or 2
    days = sorted(rng.sample(range(7), rng.randrange(3, 6)))
    dishes = rng.sample(catalogue.recipes, min(len(days), len(catalogue.recipes)))
    return Plan(
        tuple(
            Meal(WEEKDAYS[day], dish.id, size if rng.random() < 0.9 else size + 2)
            for day, dish in zip(days, dishes, strict=False)
        )
    )


def _swapped(rng: random.Random, plan: Plan, catalogue: Catalogue) -> tuple[Plan, tuple[Edit, ...]]:
    unused = [recipe.id for recipe in catalogue.recipes if recipe.id not in plan.recipe_ids]
    if not unused:
        return plan, ()
    index, new = rng.randrange(len(plan.meals)), rng.choice(unused)
    old = plan.meals[index]
    meals = list(plan.meals)
    meals[index] = Meal(old.day, new, old.servings)
    return Plan(tuple(meals)), (Edit("swap_meal", old.day, old.recipe_id, new),)
