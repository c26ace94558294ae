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
    names = ", ".join(f"'{name}'" for name in kinds)
    plan_key = _key("(payload->>'plan_id')")
    x, xmin = ({"x": "BIGINT"}, ", xmin::text::bigint") if with_xmin else ({}, "")
    event_us = f"CASE WHEN {_TIME} >= '0001-01-01 00:00:00+00' THEN {_us(_TIME)} END"
    yield (
        "events",
        {"id": "UUID", "h": "VARCHAR", "p": "VARCHAR", "us": "BIGINT", "kind": "TINYINT", **x},
        f"SELECT id, {_key('unit_id::text')}, CASE WHEN jsonb_typeof(payload->'plan_id') = 'string' THEN {plan_key} "
        f"END, {event_us}, CASE event_type {codes} END{xmin} FROM exp.events WHERE unit_type = 'household' "
        f"AND event_type IN ({names}) AND {_TIME} < {end} AND {shard.sql('unit_id')}",
    )
    yield (
        "pantry",
        {"id": "BIGINT", "h": "VARCHAR", "us": "BIGINT", **x},
        f"SELECT id, {_key('household_id::text')}, {_us('snapshot_time')}{xmin} "
        f"FROM public.pantry_snapshots WHERE snapshot_time < {end} AND {shard.sql('household_id')}",
    )
    yield (
        "limits",
        {"h": "VARCHAR", "us": "BIGINT", **x},
        f"SELECT {_key('household_id::text')}, {_us('valid_from')}{xmin} FROM public.household_constraints "
        f"WHERE valid_from < {end} AND {shard.sql('household_id')}",
    )
    yield (
        "households",
        {"h": "VARCHAR", **x},
        f"SELECT {_key('id::text')}{xmin} FROM public.households WHERE {shard.sql('id')}",
    )


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
    SELECT h, p, us AS t, id, fresh FROM events WHERE kind = 0
    QUALIFY row_number() OVER (PARTITION BY h, p ORDER BY us, id) = 1;
CREATE TABLE acceptances AS
    SELECT h, p, us, id, fresh, row_number() OVER (PARTITION BY h ORDER BY us, id) AS rn FROM events WHERE kind = 1;
CREATE TABLE seen AS
    WITH accepted AS (
        SELECT a.h, a.p, g.t, g.id AS generated_id, max(g.t) IS NOT NULL AS generated,
               arg_max(a.id, (a.us, a.id)) FILTER (a.us >= g.t) AS accepted_id,
               max(a.us) FILTER (a.us >= g.t) AS accepted_us, bool_or(a.fresh OR g.fresh) AS fresh
        FROM acceptances a LEFT JOIN generations g ON g.h = a.h AND g.p = a.p
        GROUP BY a.h, a.p, g.t, g.id HAVING max(a.us) >= $start)
    SELECT accepted.* EXCLUDE (fresh), accepted.fresh OR households.fresh AS fresh,
           CASE WHEN NOT generated THEN 'not_generated'
                WHEN accepted_id IS NULL THEN 'accepted_before_generated'
                WHEN households.h IS NULL THEN 'unknown_household' END AS reason
    FROM accepted LEFT JOIN (SELECT h, bool_or(fresh) AS fresh FROM households GROUP BY h) households
        ON households.h = accepted.h;
CREATE TABLE edits AS
    SELECT s.accepted_id, list(e.id ORDER BY e.us, e.id) AS ids, list(e.us ORDER BY e.us, e.id) AS times,
           bool_or(e.fresh) AS fresh
    FROM seen s JOIN events e ON e.kind = 2 AND e.h = s.h AND e.p = s.p AND e.us >= s.t AND e.us <= s.accepted_us
    WHERE s.reason IS NULL GROUP BY s.accepted_id;
DROP TABLE events;
DROP TABLE households;
DROP TABLE generations;
CREATE TABLE joined AS
    SELECT s.h, s.p, s.t, s.generated_id, s.accepted_us, s.accepted_id, pantry.id AS pantry_id, pantry.us AS pantry_us,
           previous.rn AS previous_rn, previous.id AS previous_id, previous.p AS previous_p, previous.us AS previous_us,
           limits.us AS limit_us, coalesce(edits.ids, []) AS edit_ids, edits.times AS edit_times,
           s.fresh OR coalesce(pantry.fresh, false) OR coalesce(previous.fresh, false) OR coalesce(limits.fresh, false)
               OR coalesce(edits.fresh, false) AS fresh
    FROM (SELECT * FROM seen WHERE reason IS NULL) s
    ASOF LEFT JOIN (SELECT h, us, max(id) AS id, arg_max(fresh, id) AS fresh FROM pantry GROUP BY h, us) pantry
        ON pantry.h = s.h AND s.t >= pantry.us
    ASOF LEFT JOIN (SELECT h, us, max(rn) AS rn, arg_max(id, rn) AS id, arg_max(p, rn) AS p,
                           arg_max(fresh, rn) AS fresh
                    FROM acceptances GROUP BY h, us) previous
        ON previous.h = s.h AND s.t > previous.us
    ASOF LEFT JOIN (SELECT h, us, bool_or(fresh) AS fresh FROM limits GROUP BY h, us) limits
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
           candidates.* EXCLUDE (row, choice, fresh, edit_times)
    FROM candidates WHERE choice <> 'taken'
    ORDER BY accepted_us, accepted_id;
"""
