"""The leak checks that need nothing but a version's files: does a row know its own target, or another split's?

In: `training.parquet` and `recipes.parquet`. Out: one `Checked` per question. Rows become a few hashes each, which
DuckDB spills where there are many. What each check asks stands in docs/dataset.md, word for word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow.parquet as pq

from planner.contracts.split import split_of
from planner.dataset.scan import scan

Result = Literal["passed", "FINDING", "note", "not run"]
# Shorter ids could be any word.
_LEAST_ID_CHARACTERS = 8
_LEAST_DISHES = 3
_LEAST_DISH_CHARACTERS = 4


@dataclass(frozen=True)
class Checked:
    """One line of a verification: `FINDING` fails it, `note` and `not run` do not; `detail` is for a person."""

    name: str
    result: Result
    detail: str


def leak_checks(training: Path, recipes: Path) -> list[Checked]:
    """Search a version for leaks.

    Raises:
        DatasetError: a file cannot be read.
    """
    found = [_splits(training)]
    with scan(training=training, recipes=recipes) as engine:
        engine.execute(_FACTS)
        found += [_previous_plans(engine), _same_inputs(engine)]
        engine.execute("DROP TABLE facts")
        found += list(_targets(engine))
    return found


def checked(name: str, count: int, what: str, *, more: str = "") -> Checked:
    """A finding where there is any `what`."""
    return Checked(name, "FINDING" if count else "passed", f"{count:,} {what}{more}")


def _splits(training: Path) -> Checked:
    wrong: set[str] = set()
    with pq.ParquetFile(training, page_checksum_verification=True, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["input.household.id", "split"]):
            homes = batch.column("input").field("household").field("id").to_pylist()
            pairs = set(zip(homes, batch.column("split").to_pylist(), strict=True))
            wrong |= {home for home, split in pairs if home is None or split_of(home) != split}
    return checked("split_of_household", len(wrong), "households in a split that is not the hash's")


_FACTS = """
CREATE TABLE facts AS SELECT
    metadata.event_id AS event, input.household.id AS home, split,
    epoch_us(metadata.generated_at) AS t, epoch_us(metadata."timestamp") AS accepted,
    hash(to_json(target.accepted_plan)::VARCHAR) AS target,
    CASE WHEN input.previous_plan IS NOT NULL THEN hash(to_json(input.previous_plan)::VARCHAR) END AS previous,
    md5_number(to_json(struct_pack(
        a := input.household.size, b := input.household.preferences, c := input.household.restrictions,
        d := input.pantry, e := input.constraints, f := input.workflow_type, g := input.mode,
        h := input.previous_plan))::VARCHAR) AS content,
    len(input.pantry.items) > 0 AS telling
FROM training
"""
# A row's previous plan is checked against the latest row of its household that was accepted before plan time. Where it
# is another plan, an acceptance that is no row may lie between (left out, or accepted again later), unless the plan
# is that of a row that was not generated yet at plan time.
_PREVIOUS = """
SELECT count(*), count(*) FILTER (f.previous IS NULL),
       count(*) FILTER (f.previous <> earlier.target AND later.home IS NOT NULL)
FROM facts f
ASOF JOIN (SELECT home, accepted, arg_max(target, event) AS target FROM facts GROUP BY home, accepted) earlier
    ON earlier.home = f.home AND f.t > earlier.accepted
LEFT JOIN (SELECT home, target, max(t) AS t FROM facts GROUP BY home, target) later
    ON later.home = f.home AND later.target = f.previous AND later.t >= f.t
"""


def _previous_plans(engine: duckdb.DuckDBPyConnection) -> Checked:
    told, missing, future = engine.execute(_PREVIOUS).fetchall()[0]
    return checked(
        "previous_plan_older",
        missing + future,
        "rows whose previous plan is that of the row itself or of a later one, or is null after an earlier row",
        more=f" (told by an earlier row of the household for {told:,} rows)",
    )


def _same_inputs(engine: duckdb.DuckDBPyConnection) -> Checked:
    query = """
        SELECT telling, sum(n)::BIGINT FROM (
            SELECT telling, content, count(*) AS n FROM facts
            GROUP BY telling, content HAVING count(DISTINCT split) > 1)
        GROUP BY telling
    """
    counts = dict(engine.execute(query).fetchall())
    return checked(
        "same_input_other_split",
        counts.get(True, 0),
        "rows whose input, apart from the household's id, is that of a row in another split",
        more=f"; {counts.get(False, 0):,} more have an empty pantry and tell nothing",
    )


# The texts of the input outside the household's id and the previous plan, in lower case, one a line.
_TEXTS = """
CREATE VIEW texts AS SELECT
    metadata.event_id AS event, metadata.plan_id AS plan, target.accepted_plan.meals AS meals,
    lower(array_to_string(list_concat(
        input.household.preferences, input.household.restrictions, input.constraints.excluded_ingredients,
        list_transform(input.pantry.items, lambda item: item.name),
        list_transform(input.pantry.items, lambda item: item.unit),
        [input.workflow_type, input.mode]), chr(10))) AS text
FROM training
"""
_IDS = f"""
SELECT count(*) FILTER (contains(text, lower(event))),
       count(*) FILTER (length(plan) >= {_LEAST_ID_CHARACTERS} AND contains(text, lower(plan))),
       count(*) FILTER (length(plan) < {_LEAST_ID_CHARACTERS})
FROM texts
"""
_DISHES = f"""
WITH dishes AS (SELECT DISTINCT event, text, unnest(meals).recipe_id AS id FROM texts),
named AS (SELECT event, text, id, lower(id) AS name FROM dishes
          UNION ALL
          SELECT event, text, dishes.id, lower(recipes.title) FROM dishes JOIN recipes ON recipes.id = dishes.id),
found AS (
    SELECT event, id, bool_or(
        CASE WHEN length(name) >= {_LEAST_DISH_CHARACTERS} AND contains(text, name)
             THEN regexp_matches(text, '(^|\\W)' || regexp_escape(name) || '(\\W|$)') ELSE false END) AS there
    FROM named GROUP BY event, id)
SELECT count(*) FROM (
    SELECT event FROM found GROUP BY event HAVING bool_and(there) AND count(*) >= {_LEAST_DISHES})
"""


def _targets(engine: duckdb.DuckDBPyConnection) -> Iterator[Checked]:
    engine.execute(_TEXTS)
    events, plans, short = engine.execute(_IDS).fetchall()[0]
    yield checked("event_id_in_input", events, "inputs with the id of their own acceptance")
    yield checked(
        "plan_id_in_input",
        plans,
        "inputs with the id of their own plan",
        more=f"; {short:,} ids under {_LEAST_ID_CHARACTERS} characters not searched" if short else "",
    )
    ((dishes,),) = engine.execute(_DISHES).fetchall()
    yield checked(
        "target_in_input",
        dishes,
        f"inputs that name every dish of their accepted plan of {_LEAST_DISHES} or more dishes",
    )
