"""The SQL of a build's keys: what PostgreSQL is asked for, and how DuckDB joins it as of plan time.

In: the window's end and a shard. Out: texts of queries, run by `keys.py` and `wide.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

REASONS = ("not_generated", "accepted_before_generated", "unknown_household", "invalid_plan")
EDIT_KINDS = {
    "meal_swapped": "swap_meal",
    "servings_adjusted": "adjust_servings",
    "meal_added": "add_meal",
    "meal_removed": "remove_meal",
}
_TIME = '"timestamp"'
# 32 bits that tell whether the n-th event of one query is the n-th of another.
CHECK_SQL = "uuid_hash(id)::bigint & 4294967295"
# What a row takes of an event, as `places` says it.
GENERATED, ACCEPTED, PREVIOUS, EDIT = range(4)


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


@dataclass(frozen=True)
class Source:
    """A table of keys: what PostgreSQL is asked for, and what is kept of it.

    `columns` are the Arrow types of the answer by name (`x` is `xmin`), `kept` the expressions over them by column.
    """

    columns: Mapping[str, pa.DataType]
    kept: Mapping[str, str]
    query: str


def sources(end_us: int, shard: Shard, *, with_xmin: bool) -> dict[str, Source]:
    """The keys' tables by name.

    Households and plans are kept as 128 bits, whatever their ids look like: `h` over the household's id, `p` over both.
    """
    end = f"to_timestamp({end_us // 1_000_000})"
    kinds = {"plan_generated": 0, "plan_accepted": 1} | dict.fromkeys(EDIT_KINDS, 2)
    codes = " ".join(f"WHEN '{name}' THEN {code}" for name, code in kinds.items())
    event_us = f"CASE WHEN {_TIME} >= '0001-01-01 00:00:00+00' THEN {_us(_TIME)} END"
    text, number = pa.string(), pa.int64()
    x, xmin = ({"x": number}, ", xmin::text::bigint") if with_xmin else ({}, "")
    h = {"h": "md5_number(h)"}
    us = {"us": "us"}
    return {
        "events": Source(
            {"id": text, "h": text, "p": text, "us": number, "kind": pa.int8(), "place": number, **x},
            {"id": "id::UUID", **h, "p": "md5_number(strlen(h) || ':' || h || p)", **us, "kind": "kind",
             "place": "place"},
            "SELECT id, unit_id::text, CASE WHEN jsonb_typeof(payload->'plan_id') = 'string' THEN payload->>'plan_id' "
            f"END, {event_us}, CASE event_type {codes} END, {CHECK_SQL}{xmin} {events_sql(end_us, shard)}",
        ),
        "pantry": Source(
            {"id": number, "h": text, "us": number, **x},
            {"id": "id", **h, **us},
            f"SELECT id, household_id::text, {_us('snapshot_time')}{xmin} FROM public.pantry_snapshots "
            f"WHERE snapshot_time < {end} AND {shard.sql('household_id')}",
        ),
        "constraints": Source(
            {"h": text, "us": number, "budget": text, "minutes": number, "excluded": text, **x},
            {**h, **us, "budget": "budget", "minutes": "minutes", "excluded": "excluded"},
            f"SELECT household_id::text, {_us('valid_from')}, budget::text, max_prep_time, "
            f"{_texts('excluded_ingredients')}{xmin} FROM public.household_constraints "
            f"WHERE valid_from < {end} AND {shard.sql('household_id')}",
        ),
        "households": Source(
            {"h": text, "size": number, "preferences": text, "restrictions": text, "region": text, **x},
            {**h, "id": "h", "size": "size", "preferences": "preferences", "restrictions": "restrictions",
             "region": "region"},
            f"SELECT id::text, size, {_texts('preferences')}, {_texts('dietary_restrictions')}, region::text{xmin} "
            f"FROM public.households WHERE {shard.sql('id')}",
        ),
    }  # fmt: skip


def events_sql(end_us: int, shard: Shard) -> str:
    """`FROM …` of the events that a build reads; every query with it gives its rows in the same order (`wide.py`)."""
    kinds = ", ".join(f"'{name}'" for name in ("plan_generated", "plan_accepted", *EDIT_KINDS))
    return (
        f"FROM exp.events WHERE unit_type = 'household' AND event_type IN ({kinds}) AND {_TIME} < "
        f"to_timestamp({end_us // 1_000_000}) AND {shard.sql('unit_id')}"
    )


def _texts(column: str) -> str:
    """A `text[]` as JSON, whatever its dimensions."""
    return f"to_json({column}::text[])::text"


def _us(column: str) -> str:
    """Microseconds since 1970; minus infinity is the least number. Nothing behind the window's end comes here."""
    return f"CASE WHEN isfinite({column}) THEN (extract(epoch FROM {column}) * 1000000)::bigint ELSE {-(2**63)} END"


# Equal times are settled by the order (time, id as text) everywhere: "latest" takes the highest, "earliest" the lowest.
JOIN = """
DELETE FROM events WHERE p IS NULL OR us IS NULL;
CREATE TABLE generations AS
    SELECT p, us AS t, id, place, fresh FROM events WHERE kind = 0
    QUALIFY row_number() OVER (PARTITION BY p ORDER BY us, id) = 1;
CREATE TABLE acceptances AS
    SELECT h, p, us, id, place, fresh, row_number() OVER one AS rn, lead(us) OVER one IS DISTINCT FROM us AS last
    FROM events WHERE kind = 1 WINDOW one AS (PARTITION BY h ORDER BY us, id);
CREATE TABLE homes AS
    SELECT h, max(struct_pack(id, size, preferences, restrictions, region)) AS home, bool_or(fresh) AS fresh
    FROM households GROUP BY h;
CREATE TABLE limits AS
    SELECT h, us, max(struct_pack(budget, minutes, excluded)) AS limits, bool_or(fresh) AS fresh
    FROM constraints GROUP BY h, us;
DROP TABLE households;
DROP TABLE constraints;
CREATE TABLE seen AS
    WITH accepted AS (
        SELECT a.p, any_value(a.h) AS h, any_value(g.t) AS t, any_value(g.id) AS generated_id,
               any_value(g.place) AS generated_place,
               max(struct_pack(a.us, a.id, a.place)) FILTER (a.us >= g.t) AS accepted,
               bool_or(a.fresh OR g.fresh) AS fresh
        FROM acceptances a LEFT JOIN generations g ON g.p = a.p GROUP BY a.p HAVING max(a.us) >= $start)
    SELECT accepted.* EXCLUDE (fresh, accepted), accepted.us AS accepted_us, accepted.id AS accepted_id,
           accepted.place AS accepted_place, accepted.fresh OR homes.fresh AS fresh,
           CASE WHEN t IS NULL THEN 'not_generated'
                WHEN accepted IS NULL THEN 'accepted_before_generated'
                WHEN homes.h IS NULL THEN 'unknown_household' END AS reason
    FROM accepted LEFT JOIN homes ON homes.h = accepted.h;
CREATE TABLE edits AS
    SELECT e.p, e.us, e.id, e.place, e.fresh
    FROM seen s JOIN events e ON e.kind = 2 AND e.p = s.p AND e.us >= s.t AND e.us <= s.accepted_us
    WHERE s.reason IS NULL;
DROP TABLE events;
DROP TABLE generations;
CREATE TABLE joined AS
    SELECT s.h, s.p, s.t, s.generated_id, s.generated_place, s.accepted_us, s.accepted_id, s.accepted_place,
           pantry.id AS pantry_id, pantry.us AS pantry_us, previous.rn AS previous_rn, previous.id AS previous_id,
           previous.p = s.p AS previous_same, previous.us AS previous_us, previous.place AS previous_place,
           limits.us AS limit_us, edited.edits,
           s.fresh OR coalesce(pantry.fresh, false) OR coalesce(previous.fresh, false) OR coalesce(limits.fresh, false)
               OR coalesce(edited.fresh, false) AS fresh
    FROM (SELECT * FROM seen WHERE reason IS NULL) s
    ASOF LEFT JOIN (SELECT h, us, max(id) AS id, arg_max(fresh, id) AS fresh FROM pantry GROUP BY h, us) pantry
        ON pantry.h = s.h AND s.t >= pantry.us
    ASOF LEFT JOIN (SELECT * FROM acceptances WHERE last) previous ON previous.h = s.h AND s.t > previous.us
    ASOF LEFT JOIN limits ON limits.h = s.h AND s.t >= limits.us
    LEFT JOIN (SELECT p, concat_ws(' ', count(*), bit_xor(hash(us, id)), bit_xor(hash(id, us))) AS edits,
                      bool_or(fresh) AS fresh
               FROM edits GROUP BY p) edited ON edited.p = s.p;
DROP TABLE pantry;
CREATE TABLE earlier (row BIGINT, id UUID, source BLOB, usable BOOLEAN);
"""
EARLIER = """
INSERT INTO earlier
    SELECT file_row_number, metadata.event_id::UUID, source, true
    FROM read_parquet($training, file_row_number = true) AS rows
    JOIN read_parquet($sources, file_row_number = true) AS fingerprints USING (file_row_number)
    WHERE metadata.event_id::UUID IN (SELECT accepted_id FROM joined)
"""
# `source` names every row that the new row is made of, but the household's; null where the keys alone cannot name them.
CHOICE = """
CREATE TABLE candidates AS
    WITH named AS (
        SELECT *, CASE WHEN previous_same IS NOT TRUE THEN unhex(left(sha256(concat(
            generated_id, ' ', t, ' ', accepted_us, ' ', coalesce(pantry_id::VARCHAR, '-'), ' ',
            coalesce(pantry_us::VARCHAR, '-'), ' ', coalesce(previous_id::VARCHAR, '-'), ' ',
            coalesce(previous_us::VARCHAR, '-'), ' ', coalesce(limit_us::VARCHAR, '-'), ' ',
            coalesce(edits, '-'))), 32)) END AS source
        FROM joined)
    SELECT named.* EXCLUDE (edits), earlier.row,
           CASE WHEN earlier.row IS NULL THEN 'new'
                WHEN named.source IS NULL OR earlier.source IS NULL OR named.source <> earlier.source THEN 'other'
                WHEN fresh THEN 'fresh' WHEN NOT usable THEN 'recipes'
                WHEN hash(named.accepted_id) % $every = 0 THEN 'compared' ELSE 'taken' END AS choice
    FROM named LEFT JOIN earlier ON earlier.id = named.accepted_id;
DROP TABLE joined;
DROP TABLE earlier;
CREATE TABLE reused AS SELECT row FROM candidates WHERE choice IN ('taken', 'compared');
CREATE TABLE plans AS
    SELECT row_number() OVER (ORDER BY accepted_us, accepted_id) - 1 AS ordinal,
           candidates.* EXCLUDE (row, choice, fresh)
    FROM candidates WHERE choice <> 'taken'
    ORDER BY accepted_us, accepted_id;
"""
# Which row takes what of which event, in the order of the events; `rank` counts the edits of a row.
PLACES = """
CREATE TABLE places AS
    SELECT generated_place AS place, 0 AS role, ordinal, 0 AS rank, generated_id AS id FROM plans
    UNION ALL SELECT accepted_place, 1, ordinal, 0, accepted_id FROM plans
    UNION ALL SELECT previous_place, 2, ordinal, 0, previous_id FROM plans WHERE NOT previous_same
    UNION ALL SELECT e.place, 3, plans.ordinal, row_number() OVER (PARTITION BY e.p ORDER BY e.us, e.id), e.id
              FROM edits e JOIN plans ON plans.p = e.p
    ORDER BY place, role, ordinal;
DROP TABLE edits;
"""
PANTRIES = "CREATE TABLE pantries AS SELECT pantry_id, ordinal FROM plans WHERE pantry_id IS NOT NULL ORDER BY ALL"
# What the keys brought along for each row, in no order; one join at a time, for the memory's sake.
HOMES = "SELECT ordinal, unnest(home) FROM plans JOIN homes ON homes.h = plans.h"
LIMITS = """
SELECT ordinal, unnest(limits.limits) FROM plans JOIN limits ON limits.h = plans.h AND limits.us = plans.limit_us
"""
