"""What a build asks PostgreSQL for: each table once, with the columns that rows are made of.

In: the window's end and a shard. Out: texts of queries by table, run by `collect.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EDIT_KINDS = {
    "meal_swapped": "swap_meal",
    "servings_adjusted": "adjust_servings",
    "meal_added": "add_meal",
    "meal_removed": "remove_meal",
}
# Of an event: the number of its kind, the edits' from `EDIT` on in the order of `EDIT_KINDS`.
GENERATED, ACCEPTED, EDIT = range(3)
_TIME = '"timestamp"'
_KINDS = {"plan_generated": GENERATED, "plan_accepted": ACCEPTED} | {
    name: EDIT + number for number, name in enumerate(EDIT_KINDS)
}


@dataclass(frozen=True)
class Shard:
    """The households whose hash leaves `index` when divided by `count`."""

    index: int = 0
    count: int = 1

    def sql(self, column: str) -> str:
        """The condition on a column that names the household; the hash is PostgreSQL's own, over the text's bytes."""
        if self.count == 1:
            return "true"
        return f"({hash_sql(column)} & {2**63 - 1}) % {self.count} = {self.index}"


def hash_sql(column: str) -> str:
    """PostgreSQL's 64-bit hash of a text, whatever the column's type and collation."""
    return f'hashtextextended({column}::text COLLATE "C", 0)'


def events_query(end_us: int, shard: Shard, *, pages: tuple[int | None, int | None], with_xmin: bool) -> str:
    """Events of households: `id, h, p, time, kind, body, policy, workflow, mode` (and `x`).

    `p` is the plan id as JSON (a text, where it begins with a quote), `body` the meals of a plan or an edit's payload
    without its plan id, `policy`, `workflow` and `mode` members of the context; as jsonb, and null where the kind has
    no use for them.

    Args:
        end_us: of the window.
        shard: the households to read.
        pages: from which page of the table on, and before which; None for no bound.
        with_xmin: whether `x`, the number of the transaction that wrote the row, comes too.
    """
    names = ", ".join(f"'{name}'" for name in _KINDS)
    codes = " ".join(f"WHEN '{name}' THEN {code}" for name, code in _KINDS.items())
    low, high = pages
    bounds = (f" AND ctid >= '({low},0)'" if low is not None else "") + (
        f" AND ctid < '({high},0)'" if high is not None else ""
    )
    return f"""
SELECT id, h, payload->'plan_id' AS p, time, kind,
       CASE WHEN kind < {EDIT} THEN payload->'plan'->'meals'
            WHEN jsonb_typeof(payload) = 'object' THEN payload - 'plan_id' END AS body,
       CASE WHEN kind < {EDIT} THEN context->'policy_version_id' END AS policy,
       CASE WHEN kind = {GENERATED} THEN context->'workflow_type' END AS workflow,
       CASE WHEN kind = {GENERATED} THEN context->'mode' END AS mode{", x" * with_xmin}
FROM (
    SELECT id, unit_id::text AS h, {_TIME} AS time, (CASE event_type {codes} END)::int2 AS kind, payload, context
           {_xmin(with_xmin)}
    FROM exp.events
    WHERE unit_type = 'household' AND event_type IN ({names}) AND {_TIME} < {_moment(end_us)}
          AND {shard.sql("unit_id")}{bounds}
    OFFSET 0  -- or the planner would put the kind's CASE in each of its places
) AS events"""


def pantries_query(end_us: int, shard: Shard, *, with_xmin: bool) -> str:
    """Pantry snapshots without their items: `id, h, time` (and `x`)."""
    return (
        f"SELECT id::bigint AS id, household_id::text AS h, snapshot_time AS time{_xmin(with_xmin)} "
        f"FROM public.pantry_snapshots WHERE snapshot_time < {_moment(end_us)} AND {shard.sql('household_id')}"
    )


def items_query(ids: Sequence[int]) -> str:
    """Items of snapshots: `id, items`, in any order."""
    listed = ",".join(map(str, ids))
    return f"SELECT id::bigint AS id, items FROM public.pantry_snapshots WHERE id = ANY('{{{listed}}}'::bigint[])"


def constraints_query(end_us: int, shard: Shard, *, with_xmin: bool) -> str:
    """Versions of constraints: `h, time, budget, minutes, excluded` (and `x`)."""
    return (
        "SELECT household_id::text AS h, valid_from AS time, budget::text AS budget, max_prep_time::bigint AS minutes, "
        f"{_texts('excluded_ingredients')} AS excluded{_xmin(with_xmin)} FROM public.household_constraints "
        f"WHERE valid_from < {_moment(end_us)} AND {shard.sql('household_id')}"
    )


def households_query(shard: Shard, *, with_xmin: bool) -> str:
    """Households: `h, size, preferences, restrictions, region` (and `x`)."""
    return (
        f"SELECT id::text AS h, size::bigint AS size, {_texts('preferences')} AS preferences, "
        f"{_texts('dietary_restrictions')} AS restrictions, region::text AS region{_xmin(with_xmin)} "
        f"FROM public.households WHERE {shard.sql('id')}"
    )


# Pages of the events' table, or of its largest partition, and bytes of all; null where rows have no place (a view).
PAGES = """
WITH leaves AS (
    SELECT relid::oid AS id FROM pg_partition_tree('exp.events'::regclass) WHERE isleaf
    UNION SELECT oid FROM pg_class WHERE oid = 'exp.events'::regclass AND relkind <> 'p')
SELECT max(pg_relation_size(id)) / current_setting('block_size')::bigint AS pages,
       coalesce(sum(pg_table_size(id)), 0)::bigint AS size
FROM leaves WHERE (SELECT bool_and(relkind = 'r') FROM leaves JOIN pg_class ON oid = id)
"""


def _moment(us: int) -> str:
    return f"to_timestamp({us // 1_000_000})"


def _xmin(wanted: bool) -> str:
    return ", xmin::text::bigint AS x" if wanted else ""


def _texts(column: str) -> str:
    """A `text[]` as JSON, whatever its dimensions."""
    return f"to_json({column}::text[])::text"
