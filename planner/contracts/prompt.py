"""The prompt and its inverse: the only place where a request becomes text and text becomes a plan.

Training, replay and serving call these functions, so the bytes are the same in all three. Ids never enter the
text: a dish is its title. A plan is one line a meal, Monday first, `Mon: Title`, with ` x6` behind the title
where the servings are not the household's size:

    Mon: Chicken Fajitas
    Wed: Beef Tacos x6

Prompt plus target plus the tokenizer's end token is one training example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from planner.contracts.catalogue import Catalogue, Recipe, text_title
from planner.contracts.errors import ContractError
from planner.contracts.plan import WEEKDAYS, Meal, Plan
from planner.contracts.request import Request

PROMPT_VERSION = "1"
INSTRUCTION = "Plan this household's dinners for the week.\n"
TARGET_HEADER = "This week:\n"
DAY_LABELS = tuple(day[:3].capitalize() for day in WEEKDAYS)
LABEL_OF_DAY = dict(zip(WEEKDAYS, DAY_LABELS, strict=True))
DAY_OF_LABEL = dict(zip(DAY_LABELS, WEEKDAYS, strict=True))
DEFAULT_SERVINGS = 2  # of a household of unknown size
MAX_PANTRY_ITEMS = 16  # named in the text; the rest is counted there, never dropped in silence
MAX_TEXT = 60  # characters of one free text (a pantry item, a preference) that are shown
_SERVINGS = r"[1-9][0-9]{0,9}"  # an int32 has ten digits at most; Python reads no text of more than 4,300 as a number
_LINE = re.compile(rf"(Mon|Tue|Wed|Thu|Fri|Sat|Sun): (.+?)(?: x({_SERVINGS}))?")


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ..., split_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: list[int], **options: object) -> str: ...


def default_servings(request: Request) -> int:
    """Servings that a line without ` xN` means: the household's size, 2 when that is unknown or 0."""
    return request.household.size or DEFAULT_SERVINGS


def render_prompt(request: Request, catalogue: Catalogue) -> str:
    """The text that the model continues with a plan; ends with `This week:` and a newline."""
    household, limits = request.household, request.constraints
    lines = [INSTRUCTION + f"Household: {default_servings(request)}"]
    if household.preferences:
        lines.append(f"Likes: {_listed(household.preferences)}")
    if household.restrictions:
        lines.append(f"Needs: {_listed(household.restrictions)}")
    if limits.excluded_ingredients:
        lines.append(f"Without: {_listed(limits.excluded_ingredients)}")
    if limits.budget is not None:
        lines.append(f"Budget: {limits.budget:.0f}")
    if limits.max_prep_time is not None:
        lines.append(f"Minutes: {limits.max_prep_time}")
    lines.append(f"Style: {_short(request.workflow_type)}, {_short(request.mode)}")
    if request.pantry:
        lines.append(f"Pantry: {_listed(tuple(dict.fromkeys(item.name for item in request.pantry)))}")
    if request.previous_plan is not None:
        lines.append("Last week:\n" + render_plan(request.previous_plan, request, catalogue).rstrip("\n"))
    return "\n".join(lines) + "\n" + TARGET_HEADER


def render_plan(plan: Plan, request: Request, catalogue: Catalogue) -> str:
    """The plan as lines, Monday first, each with its newline; a dish that left the catalogue is `(gone)`."""
    usual = default_servings(request)
    return "".join(
        f"{LABEL_OF_DAY[meal.day]}: {_title(catalogue.by_id.get(meal.recipe_id))}"
        f"{'' if meal.servings == usual else f' x{meal.servings}'}\n"
        for meal in plan.in_week_order().meals
    )


def parse_plan_text(text: str, request: Request, catalogue: Catalogue) -> Plan:
    """Inverse of `render_plan` for dishes of the catalogue.

    Raises:
        ContractError: a line is no meal, or names a dish that the catalogue does not have.
    """
    meals = []
    for line in text.splitlines():
        # A title may itself end like ` x2`: the whole rest of the line is tried as a title first.
        label, _, rest = line.partition(": ")
        if label in DAY_OF_LABEL and rest in catalogue.by_title:
            meals.append(Meal(DAY_OF_LABEL[label], catalogue.by_title[rest].id, default_servings(request)))
            continue
        match = _LINE.fullmatch(line)
        recipe = catalogue.by_title.get(match[2]) if match else None
        if match is None or recipe is None:
            raise ContractError(f"Not a line of a plan: {line[:80]!r}.", line=line)
        meals.append(Meal(DAY_OF_LABEL[match[1]], recipe.id, int(match[3] or default_servings(request))))
    return Plan(tuple(meals))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt, with one begin token where the tokenizer has one of its own (Llama has, SmolLM2 not).

    A control token's name in the text (`<|im_end|>` as a pantry item) is split like any other text.
    """
    # The same for both calls: the option is a switch of the tokenizer's, which other threads may be using.
    ids = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True)
    begin = tokenizer.bos_token_id
    with_special = tokenizer.encode("a", add_special_tokens=True, split_special_tokens=True)
    return [begin, *ids] if begin is not None and with_special[:1] == [begin] else ids


def encode_target(tokenizer: Tokenizer, target: str) -> list[int]:
    """Token ids of a rendered plan with the end token that the model has to learn.

    Raises:
        ContractError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ContractError("The base model's tokenizer has no end token, so a plan could never end.")
    return [*tokenizer.encode(target, add_special_tokens=False), tokenizer.eos_token_id]


def title_collisions(catalogue: Catalogue) -> Mapping[str, str]:
    """Titles that read like another title with servings (`Soup x2` beside `Soup`), which the text cannot tell apart."""
    found = {}
    for title in catalogue.by_title:
        match = re.fullmatch(rf"(.+) x{_SERVINGS}", title)
        if match and match[1] in catalogue.by_title:
            found[title] = match[1]
    return found


def _title(recipe: Recipe | None) -> str:
    return "(gone)" if recipe is None else text_title(recipe.title)


def _short(text: str) -> str:
    clean = text_title(text)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 1] + "…"


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(_short(name) for name in names[:MAX_PANTRY_ITEMS])
    more = len(names) - MAX_PANTRY_ITEMS
    return f"{shown} and {more} more" if more > 0 else shown
