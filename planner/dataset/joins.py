"""The SQL of a build's keys: what PostgreSQL is asked for, and how DuckDB joins it as of plan time.

In: the window's end and a shard. Out: texts of queries, run by `keys.py`. Texts of any length enter the keys as
themselves up to 200 bytes and as their SHA-256 beyond.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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


def sources_sql(end_us: int, shard: Shard, *, with_xmin: bool) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """Per narrow table its name, DuckDB column types and the query that PostgreSQL answers; `x` is `xmin`."""
    end = f"to_timestamp({end_us // 1_000_000})"
    kinds = {"plan_generated": 0, "plan_accepted": 1} | dict.fromkeys(EDIT_KINDS, 2)
    codes = " ".join(f"WHEN '{name}' THEN {code}" for name, code in kinds.items())
    plan_key = _key("(payload->>'plan_id')")
    x, xmin = ({"x": "BIGINT"}, ", xmin::text::bigint") if with_xmin else ({}, "")
    event_us = f"CASE WHEN {_TIME} >= '0001-01-01 00:00:00+00' THEN {_us(_TIME)} END"
    yield (
        "events",
        {"id": "UUID", "h": "VARCHAR", "p": "VARCHAR", "us": "BIGINT", "kind": "TINYINT", "place": "BIGINT", **x},
        f"SELECT id, {_key('unit_id::text')}, CASE WHEN jsonb_typeof(payload->'plan_id') = 'string' THEN {plan_key} "
        f"END, {event_us}, CASE event_type {codes} END, {CHECK_SQL}{xmin} {events_sql(end_us, shard)}",
    )
    yield (
        "pantry",
        {"id": "BIGINT", "h": "VARCHAR", "us": "BIGINT", **x},
        f"SELECT id, {_key('household_id::text')}, {_us('snapshot_time')}{xmin} "
        f"FROM public.pantry_snapshots WHERE snapshot_time < {end} AND {shard.sql('household_id')}",
    )
    yield (
        "limits",
        {"h": "VARCHAR", "us": "BIGINT", "budget": "VARCHAR", "minutes": "BIGINT", "excluded": "VARCHAR", **x},
        f"SELECT {_key('household_id::text')}, {_us('valid_from')}, budget::text, max_prep_time, "
        f"{_texts('excluded_ingredients')}{xmin} FROM public.household_constraints "
        f"WHERE valid_from < {end} AND {shard.sql('household_id')}",
    )
    yield (
        "households",
        {"h": "VARCHAR", "id": "VARCHAR", "size": "BIGINT", "preferences": "VARCHAR", "restrictions": "VARCHAR",
         "region": "VARCHAR", **x},
        f"SELECT {_key('id::text')}, id::text, size, {_texts('preferences')}, {_texts('dietary_restrictions')}, "
        f"region::text{xmin} FROM public.households WHERE {shard.sql('id')}",
    )  # fmt: skip


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


def _key(text: str) -> str:
    return (
        f"CASE WHEN octet_length({text}) <= 200 THEN 't' || ({text}) "
        f"ELSE 's' || encode(sha256(convert_to({text}, 'UTF8')), 'hex') END"
    )


def _us(column: str) -> str:
    """Microseconds since 1970; minus infinity is the least number. Nothing behind the window's end comes here."""
    return f"CASE WHEN isfinite({column}) THEN (extract(epoch FROM {column}) * 1000000)::bigint ELSE {-(2**63)} END"


# Equal times are settled by the order (time, id as text) everywhere: "latest" takes the highest, "earliest" the lowest.
JOIN = """
DELETE FROM events WHERE p IS NULL OR us IS NULL;
CREATE TABLE generations AS
    SELECT h, p, us AS t, id, place, fresh FROM events WHERE kind = 0
    QUALIFY row_number() OVER (PARTITION BY h, p ORDER BY us, id) = 1;
CREATE TABLE acceptances AS
    SELECT h, p, us, id, place, fresh, row_number() OVER (PARTITION BY h ORDER BY us, id) AS rn
    FROM events WHERE kind = 1;
CREATE TABLE homes AS
    SELECT h, max(struct_pack(id, size, preferences, restrictions, region)) AS home, bool_or(fresh) AS fresh
    FROM households GROUP BY h;
DROP TABLE households;
CREATE TABLE seen AS
    WITH accepted AS (
        SELECT a.h, a.p, g.t, g.id AS generated_id, g.place AS generated_place, max(g.t) IS NOT NULL AS generated,
               arg_max(a.id, (a.us, a.id)) FILTER (a.us >= g.t) AS accepted_id,
               arg_max(a.place, (a.us, a.id)) FILTER (a.us >= g.t) AS accepted_place,
               max(a.us) FILTER (a.us >= g.t) AS accepted_us, bool_or(a.fresh OR g.fresh) AS fresh
        FROM acceptances a LEFT JOIN generations g ON g.h = a.h AND g.p = a.p
        GROUP BY a.h, a.p, g.t, g.id, g.place HAVING max(a.us) >= $start)
    SELECT accepted.* EXCLUDE (fresh), accepted.fresh OR homes.fresh AS fresh,
           CASE WHEN NOT generated THEN 'not_generated'
                WHEN accepted_id IS NULL THEN 'accepted_before_generated'
                WHEN homes.h IS NULL THEN 'unknown_household' END AS reason
    FROM accepted LEFT JOIN homes ON homes.h = accepted.h;
CREATE TABLE edits AS
    SELECT s.accepted_id, list(e.id ORDER BY e.us, e.id) AS ids, list(e.us ORDER BY e.us, e.id) AS times,
           list(e.place ORDER BY e.us, e.id) AS places, bool_or(e.fresh) AS fresh
    FROM seen s JOIN events e ON e.kind = 2 AND e.h = s.h AND e.p = s.p AND e.us >= s.t AND e.us <= s.accepted_us
    WHERE s.reason IS NULL GROUP BY s.accepted_id;
DROP TABLE events;
DROP TABLE generations;
CREATE TABLE joined AS
    SELECT s.h, s.p, s.t, s.generated_id, s.generated_place, s.accepted_us, s.accepted_id, s.accepted_place,
           pantry.id AS pantry_id, pantry.us AS pantry_us, previous.rn AS previous_rn, previous.id AS previous_id,
           previous.p AS previous_p, previous.us AS previous_us, previous.place AS previous_place,
           limits.us AS limit_us, limits.limits, coalesce(edits.ids, []) AS edit_ids, edits.times AS edit_times,
           coalesce(edits.places, []) AS edit_places,
           s.fresh OR coalesce(pantry.fresh, false) OR coalesce(previous.fresh, false) OR coalesce(limits.fresh, false)
               OR coalesce(edits.fresh, false) AS fresh
    FROM (SELECT * FROM seen WHERE reason IS NULL) s
    ASOF LEFT JOIN (SELECT h, us, max(id) AS id, arg_max(fresh, id) AS fresh FROM pantry GROUP BY h, us) pantry
        ON pantry.h = s.h AND s.t >= pantry.us
    ASOF LEFT JOIN (SELECT h, us, max(rn) AS rn, arg_max(id, rn) AS id, arg_max(p, rn) AS p,
                           arg_max(place, rn) AS place, arg_max(fresh, rn) AS fresh
                    FROM acceptances GROUP BY h, us) previous
        ON previous.h = s.h AND s.t > previous.us
    ASOF LEFT JOIN (SELECT h, us, max(struct_pack(budget, minutes, excluded)) AS limits, bool_or(fresh) AS fresh
                    FROM limits GROUP BY h, us) limits
        ON limits.h = s.h AND s.t >= limits.us
    LEFT JOIN edits ON edits.accepted_id = s.accepted_id;
DROP TABLE pantry;
DROP TABLE limits;
DROP TABLE edits;
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
        SELECT *, CASE WHEN previous_p IS NULL OR previous_p <> p THEN unhex(left(sha256(concat(
            generated_id, ' ', t, ' ', accepted_us, ' ', coalesce(pantry_id::VARCHAR, '-'), ' ',
            coalesce(pantry_us::VARCHAR, '-'), ' ', coalesce(previous_id::VARCHAR, '-'), ' ',
            coalesce(previous_us::VARCHAR, '-'), ' ', coalesce(limit_us::VARCHAR, '-'), ' ', edit_ids::VARCHAR, ' ',
            coalesce(edit_times::VARCHAR, '-'))), 32)) END AS source
        FROM joined)
    SELECT named.*, earlier.row,
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
           candidates.* EXCLUDE (row, choice, fresh, edit_times), homes.home
    FROM candidates JOIN homes ON homes.h = candidates.h WHERE choice <> 'taken'
    ORDER BY accepted_us, accepted_id;
DROP TABLE homes;
"""
# Which row takes what of which event, in the order of the events; `rank` counts the edits of a row.
PLACES = """
CREATE TABLE places AS
    SELECT generated_place AS place, 0 AS role, ordinal, 0 AS rank, generated_id AS id FROM plans
    UNION ALL SELECT accepted_place, 1, ordinal, 0, accepted_id FROM plans
    UNION ALL SELECT previous_place, 2, ordinal, 0, previous_id FROM plans WHERE previous_p <> p
    UNION ALL SELECT unnest(edit_places), 3, ordinal, unnest(range(len(edit_places))), unnest(edit_ids) FROM plans
    ORDER BY place, role, ordinal;
"""
PANTRIES = "CREATE TABLE pantries AS SELECT pantry_id, ordinal FROM plans WHERE pantry_id IS NOT NULL ORDER BY ALL"
