"""The dataset build against other ways to get the same rows, alternating: wall time, CPU of client and server, memory.

In: a size (accepted plans; 5 pantry snapshots of 20 items for 3 of them, 3.6 events each), in an embedded server of its
own. Out: a line per method and round. Each method runs in a process of its own; the server's CPU is that of the
postmaster and all its children. Run: `python -m benchmarks.dataset [--plans 30000] [--rounds 2] [--methods ours copy]`.

`copy` reads the same columns to a counting sink (the limit of a full read); `sql` is one statement with LATERAL joins
through a server-side cursor, `adbc` the same statement as Arrow batches, typed by DuckDB's `from_json`; `pandas` is
COPY, json and merge_asof; `duckdb` is COPY, ASOF joins and `from_json` over the whole tables; `loop` is a query per
event, extrapolated from 500; `feast` is the pantry alone, by the interpreter of `--feast`. None of these checks plans
or hashes files, so they do less than `ours`. `earlier` builds a version of nine tenths of the window, and `later` the
whole window with that version at hand (in this order, they are timed apart); `sharded` is `ours` in four shards.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from planner.contracts.plan import WEEKDAYS
from planner.contracts.schema import ITEM
from planner.dataset.build import build_dataset
from planner.dataset.config import DatasetConfig
from planner.dataset.database import connect, create_schema
from planner.dataset.embedded import embedded_postgres

START, END = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NUM_RECIPES, NUM_ITEMS, LOOP_ROWS = 500, 20, 500
FEAST_PYTHON = "BENCHMARK_FEAST_PYTHON"
EDIT_TYPES = ("meal_swapped", "servings_adjusted", "meal_removed")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--folder", type=Path, help="keeps the database between calls")
    parser.add_argument("--server", help="URL of another server's empty database, by a socket of this machine")
    parser.add_argument("--feast", help="a Python that has feast[postgres] installed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.feast:
        os.environ[FEAST_PYTHON] = options.feast
    if options.one:
        print(json.dumps(_measured(METHODS[options.one], options.url)))
        return
    with contextlib.ExitStack() as stack:
        url = options.server
        if url is None:
            folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planner-bench-")))
            folder.mkdir(exist_ok=True, parents=True)
            folder.chmod(0o755)
            url = stack.enter_context(embedded_postgres(folder, fsync=False))
        _generate(url, options.plans, may_empty=options.server is None)
        print(f"{'method':<8}{'wall s':>8}{'client CPU s':>14}{'server CPU s':>14}{'peak MB':>9}  rows")
        for _ in range(options.rounds):
            for name in options.methods:
                if name == "feast" and FEAST_PYTHON not in os.environ:
                    print("feast    is left out: no --feast")
                    continue
                _report(name, url)


def _report(name: str, url: str) -> None:
    before = _server_seconds(url)
    command = [sys.executable, "-m", "benchmarks.dataset", "--one", name, "--url", url]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    time.sleep(0.3)  # the server's process is counted once it has ended
    scale = found["scale"]
    server = (_server_seconds(url) - before) * scale
    print(
        f"{name:<8}{found['wall'] * scale:8.1f}{found['cpu'] * scale:14.1f}{server:14.1f}{found['peak_mb']:9.0f}  "
        f"{found['rows']:,}" + (" (extrapolated)" if scale != 1 else ""),
        flush=True,
    )


def _measured(method: Callable[[str], tuple[int, float]], url: str) -> dict[str, float]:
    began, cpu = time.monotonic(), _cpu_seconds()
    rows, scale = method(url)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "wall": time.monotonic() - began,
        "cpu": _cpu_seconds() - cpu,
        "peak_mb": max(peaks) / 1024,
        "rows": rows,
        "scale": scale,
    }


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def _server_seconds(url: str) -> float:
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        row = cursor.fetchone()
    assert row is not None
    # This connection's process may be gone: the postmaster is found by its data folder's other processes.
    for process in psutil.process_iter(["name", "ppid"]):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.info["name"] == "postgres" and any(c.name() == "postgres" for c in process.children()):
                if _socket_folder(url) in " ".join(process.cmdline()):
                    times = [p.cpu_times() for p in (process, *process.children())]
                    return sum(t.user + t.system + t.children_user + t.children_system for t in times)
    raise SystemExit("The server's processes cannot be seen from here.")


def _socket_folder(url: str) -> str:
    return url.partition("host=")[2].partition("&")[0].replace("%2F", "/")


# The generator: fixed seed, so every call gives the same database.


def _generate(url: str, plans: int, *, may_empty: bool) -> None:
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        create_schema(connection)
        cursor.execute("SELECT count(*) FROM exp.events WHERE event_type = 'plan_accepted'")
        (there,) = cursor.fetchone() or (0,)
        if there == plans:
            return
        if there and not may_empty:
            raise SystemExit(f"The database holds {there:,} accepted plans already: name an empty one.")
        cursor.execute("TRUNCATE exp.events, households, pantry_snapshots, household_constraints, recipes")
        rng, homes = random.Random(plans), max(1, plans // 6)
        for table, lines in (
            ("recipes (id, title, prep_time, cost_per_serving)",
             (f"r{n}\tDish number {n}\t{20 + n % 50}\t{2 + n % 7}.50" for n in range(NUM_RECIPES))),
            ("households (id, size, preferences, region)",
             (f"household-{n}\t{1 + n % 6}\t{{pasta,beans}}\tnorth" for n in range(homes))),
            ("household_constraints (household_id, budget, max_prep_time, excluded_ingredients)",
             (f"household-{n}\t{60 + n % 90}.00\t{30 + n % 60}\t{{shellfish}}" for n in range(homes))),
            ("pantry_snapshots (id, household_id, snapshot_time, items)", _snapshots(rng, homes, plans * 5 // 3)),
            ('exp.events (id, event_type, unit_type, unit_id, context, payload, "timestamp")',
             _events(rng, homes, plans)),
        ):  # fmt: skip
            cursor.copy_expert(f"COPY {table} FROM STDIN", _Lines(lines))
        connection.commit()
        connection.autocommit = True
        cursor.execute("VACUUM ANALYZE")


class _Lines(io.RawIOBase):
    """Lines as the file that COPY reads."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._rest = lines, b""

    def read(self, size: int = -1) -> bytes:
        parts, length = [self._rest], len(self._rest)
        while length < size and (line := next(self._lines, None)) is not None:
            parts.append(line.encode() + b"\n")
            length += len(parts[-1])
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]


def _moment(rng: random.Random, earliest: dt.datetime = START) -> dt.datetime:
    return earliest + dt.timedelta(seconds=rng.randrange(1, max(2, int((END - earliest).total_seconds()) - 3600)))


def _snapshots(rng: random.Random, homes: int, count: int) -> Iterator[str]:
    names = [
        f"{kind} {thing}" for kind in ("fresh", "frozen", "canned", "dried") for thing in ("peas", "beans", "rice")
    ]
    items = [
        json.dumps({"name": f"{rng.choice(names)} {n}", "quantity": rng.choice([1, 2.5, 0.33, 400]), "unit": "g"})
        for n in range(3000)
    ]
    for number in range(count):
        listed = ", ".join(rng.choices(items, k=NUM_ITEMS))
        yield f"{number}\thousehold-{rng.randrange(homes)}\t{_moment(rng)}\t[{listed}]"


def _events(rng: random.Random, homes: int, plans: int) -> Iterator[str]:
    context = json.dumps(
        {"workflow_type": "plan-first", "mode": "autopilot", "policy_version_id": str(uuid.UUID(int=7))}
    )

    def event(kind: str, home: int, payload: dict[str, Any], at: dt.datetime) -> str:
        id_ = uuid.UUID(int=rng.getrandbits(128), version=4)
        return f"{id_}\t{kind}\thousehold\thousehold-{home}\t{context}\t{json.dumps(payload)}\t{at}"

    for number in range(plans):
        home, at = rng.randrange(homes), _moment(rng)
        plan_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        meals = [
            {"day": day, "recipe_id": f"r{rng.randrange(NUM_RECIPES)}", "servings": rng.randint(1, 6)}
            for day in WEEKDAYS[: rng.randint(3, 7)]
        ]
        yield event("plan_generated", home, {"plan_id": plan_id, "plan": {"meals": meals}}, at)
        for minute in range(1 + (number % 5 < 3)):
            edit = {"plan_id": plan_id, "day": "monday", "from": "r1", "to": "r2", "servings": 3}
            yield event(rng.choice(EDIT_TYPES), home, edit, at + dt.timedelta(minutes=minute + 1))
        yield event("plan_accepted", home, {"plan_id": plan_id, "plan": {"meals": meals}}, at + dt.timedelta(minutes=9))


# The methods: each reads the database and gives (rows, the factor that its times stand for).


def _ours(url: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = DatasetConfig(start_date=START.date(), end_date=END.date(), datasets=folder)
        return build_dataset(url, config).num_rows, 1


def _sharded(url: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = DatasetConfig(start_date=START.date(), end_date=END.date(), datasets=folder, shards=4)
        return build_dataset(url, config).num_rows, 1


def _earlier(url: str) -> tuple[int, float]:
    with contextlib.closing(connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute("CHECKPOINT")
    kept = _kept(url)
    shutil.rmtree(kept, ignore_errors=True)
    end = START.date() + (END.date() - START.date()) * 9 // 10
    config = DatasetConfig(start_date=START.date(), end_date=end, date="early", datasets=str(kept))
    return build_dataset(url, config).num_rows, 1


def _later(url: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "planner").mkdir()
        Path(folder, "planner", "early").symlink_to(_kept(url) / "planner" / "early")
        config = DatasetConfig(start_date=START.date(), end_date=END.date(), datasets=folder, reuse="early")
        report = build_dataset(url, config)
        assert report.reuse.num_rows, report.reuse.told
        return report.num_rows, 1


def _kept(url: str) -> Path:
    """Where `earlier` leaves its version for `later`: beside the server's socket."""
    return Path(_socket_folder(url)).parent / "earlier"


def _feast(url: str) -> tuple[int, float]:
    script = Path(__file__).with_name("feast_pantry.py")
    done = subprocess.run([os.environ[FEAST_PYTHON], str(script), url], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return int(json.loads(done.stdout.splitlines()[-1])["rows"]), 1


def _duckdb(url: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as engine:
        engine.execute(f"SET temp_directory = '{folder}'; SET TimeZone = 'UTC'")
        with contextlib.closing(connect(url, read_only=True)) as connection, connection.cursor() as cursor:
            for name, query in _COLUMNS.items():
                with open(f"{folder}/{name}.csv", "wb") as file:
                    cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", file)
                engine.execute(
                    f"CREATE VIEW {name} AS SELECT * FROM read_csv('{folder}/{name}.csv', header = true, "
                    "max_line_size = 10000000, types = {%s})" % _CSV_TYPES[name]
                )
        engine.execute(_ASOF)
        rows = engine.execute(f"COPY joined TO '{folder}/rows.parquet' (FORMAT parquet, COMPRESSION zstd)").fetchall()
        return int(rows[0][0]), 1


_PLAN_JSON = '\'{"meals": [{"day": "VARCHAR", "recipe_id": "VARCHAR", "servings": "INTEGER"}]}\''
_ITEMS_JSON = '\'[{"name": "VARCHAR", "quantity": "DOUBLE", "unit": "VARCHAR"}]\''
_EDIT_JSON = '\'{"day": "VARCHAR", "from": "VARCHAR", "to": "VARCHAR", "servings": "INTEGER"}\''
_EDITS_JSON = f"'[{_EDIT_JSON[1:-1]}]'"
_CSV_TYPES = {
    "households": "'id': 'VARCHAR', 'size': 'INTEGER'",
    "constraints": "'household_id': 'VARCHAR', 'valid_from': 'VARCHAR', 'budget': 'DOUBLE'",
    "pantry": "'id': 'BIGINT', 'household_id': 'VARCHAR', 'snapshot_time': 'TIMESTAMPTZ', 'items': 'VARCHAR'",
    "events": "'id': 'UUID', 'unit_id': 'VARCHAR', 'context': 'VARCHAR', 'payload': 'VARCHAR', "
    "'timestamp': 'TIMESTAMPTZ'",
}
_ASOF = f"""
CREATE TABLE logged AS SELECT id, event_type, unit_id, context, payload, "timestamp" AS moment,
    payload->>'plan_id' AS plan_id FROM events;
CREATE VIEW joined AS
SELECT a.unit_id, h.* EXCLUDE (id), from_json(s.items, {_ITEMS_JSON}) AS items, c.budget, c.max_prep_time,
       g.context->>'workflow_type' AS workflow_type,
       from_json(p.payload->'plan', {_PLAN_JSON}) AS previous, from_json(a.payload->'plan', {_PLAN_JSON}) AS accepted,
       from_json(g.payload->'plan', {_PLAN_JSON}) AS generated, edits.list AS edits,
       a.moment, g.moment AS generated_at, a.id
FROM (SELECT * FROM logged WHERE event_type = 'plan_accepted') a
JOIN (SELECT * FROM logged WHERE event_type = 'plan_generated') g ON g.unit_id = a.unit_id AND g.plan_id = a.plan_id
JOIN households h ON h.id = a.unit_id
LEFT JOIN constraints c ON c.household_id = a.unit_id
ASOF LEFT JOIN pantry s ON s.household_id = a.unit_id AND g.moment >= s.snapshot_time
ASOF LEFT JOIN (SELECT * FROM logged WHERE event_type = 'plan_accepted') p
    ON p.unit_id = a.unit_id AND g.moment > p.moment
LEFT JOIN (SELECT unit_id, plan_id, list(from_json(payload, {_EDIT_JSON}) ORDER BY moment) AS list FROM logged
           WHERE event_type IN {EDIT_TYPES} GROUP BY ALL) edits
    ON edits.unit_id = a.unit_id AND edits.plan_id = a.plan_id
ORDER BY a.moment, a.id
"""


def _copy(url: str) -> tuple[int, float]:
    class Sink:
        size = 0

        def write(self, data: bytes) -> int:
            self.size += len(data)
            return len(data)

    with contextlib.closing(connect(url, read_only=True)) as connection, connection.cursor() as cursor:
        for query in _COLUMNS.values():
            cursor.copy_expert(f"COPY ({query}) TO STDOUT", Sink())
            rows = cursor.rowcount
    return rows, 1


_COLUMNS = {
    "households": "SELECT id, size, preferences, dietary_restrictions, region FROM households",
    "constraints": "SELECT household_id, valid_from, budget, max_prep_time, excluded_ingredients "
    "FROM household_constraints",
    "pantry": "SELECT id, household_id, snapshot_time, items FROM pantry_snapshots",
    "events": 'SELECT id, event_type, unit_id, context, payload, "timestamp" FROM exp.events '
    "WHERE unit_type = 'household'",
}
_STATEMENT = """
SELECT h.id, h.size, h.preferences, h.dietary_restrictions, pantry.items::text, c.budget::float8, c.max_prep_time,
       c.excluded_ingredients, (g.context->'workflow_type')::text, (previous.payload->'plan')::text,
       (a.payload->'plan')::text, edits.list::text, a."timestamp", g."timestamp", (g.payload->'plan')::text
FROM exp.events a
JOIN exp.events g ON g.unit_id = a.unit_id AND g.unit_type = 'household' AND g.event_type = 'plan_generated'
    AND g.payload->>'plan_id' = a.payload->>'plan_id'
JOIN households h ON h.id = a.unit_id
LEFT JOIN LATERAL (SELECT items FROM pantry_snapshots s WHERE s.household_id = a.unit_id
    AND s.snapshot_time <= g."timestamp" ORDER BY snapshot_time DESC, id DESC LIMIT 1) pantry ON true
LEFT JOIN LATERAL (SELECT * FROM household_constraints k WHERE k.household_id = a.unit_id
    AND k.valid_from <= g."timestamp" ORDER BY valid_from DESC LIMIT 1) c ON true
LEFT JOIN LATERAL (SELECT payload FROM exp.events p WHERE p.unit_id = a.unit_id AND p.unit_type = 'household'
    AND p.event_type = 'plan_accepted' AND p."timestamp" < g."timestamp"
    ORDER BY p."timestamp" DESC, p.id DESC LIMIT 1) previous ON true
LEFT JOIN LATERAL (SELECT json_agg(e.payload ORDER BY e."timestamp") AS list FROM exp.events e
    WHERE e.unit_id = a.unit_id AND e.unit_type = 'household' AND e.event_type = ANY(%(edits)s)
    AND e.payload->>'plan_id' = a.payload->>'plan_id'
    AND e."timestamp" BETWEEN g."timestamp" AND a."timestamp") edits ON true
WHERE a.unit_type = 'household' AND a.event_type = 'plan_accepted' {more}
"""
_JSON_COLUMNS = (4, 8, 9, 10, 11, 14)


def _sql(url: str) -> tuple[int, float]:
    rows = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(connect(url, read_only=True)) as connection:
        with connection.cursor(name="rows") as cursor:
            cursor.itersize = 2000
            cursor.execute(_STATEMENT.format(more=""), {"edits": list(EDIT_TYPES)})
            writer = None
            while batch := cursor.fetchmany(5000):
                table = _typed(batch)
                writer = writer or pq.ParquetWriter(f"{folder}/rows.parquet", table.schema, compression="zstd")
                writer.write_table(table)
                rows += len(batch)
        if writer:
            writer.close()
    return rows, 1


def _adbc(url: str) -> tuple[int, float]:
    from adbc_driver_postgresql import dbapi

    statement = _STATEMENT.format(more="").replace("%(edits)s", f"ARRAY{list(EDIT_TYPES)}")
    names = [f"c{index}" for index in range(15)]
    kinds = {4: _ITEMS_JSON, 9: _PLAN_JSON, 10: _PLAN_JSON, 11: _EDITS_JSON, 14: _PLAN_JSON}
    columns = [f"from_json({name}, {kinds[index]}) AS {name}" if index in kinds else name
               for index, name in enumerate(names)]  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        dbapi.connect(url) as connection,
        connection.cursor() as cursor,
        duckdb.connect() as engine,
    ):
        cursor.execute(f"SELECT * FROM ({statement}) AS found ({', '.join(names)})")
        reader = cursor.fetch_record_batch()  # noqa: F841 - DuckDB reads it by its name
        rows = engine.execute(
            f"COPY (SELECT {', '.join(columns)} FROM reader) TO '{folder}/rows.parquet' (FORMAT parquet, "
            "COMPRESSION zstd)"
        ).fetchall()
        return int(rows[0][0]), 1


def _typed(batch: list[tuple[Any, ...]]) -> pa.Table:
    columns: list[Any] = list(zip(*batch, strict=True))
    for index in _JSON_COLUMNS:
        columns[index] = [None if text is None else json.loads(text) for text in columns[index]]
    plan = pa.struct([("meals", pa.list_(pa.struct([("day", pa.string()), ("recipe_id", pa.string()),
                                                    ("servings", pa.int32())])))])  # fmt: skip
    edit = pa.struct([("day", pa.string()), ("from", pa.string()), ("to", pa.string()), ("servings", pa.int32())])
    texts, time_ = pa.list_(pa.string()), pa.timestamp("us", tz="UTC")
    kinds = [pa.string(), pa.int32(), texts, texts, pa.list_(ITEM), pa.float64(), pa.int32(), texts, pa.string(), plan,
             plan, pa.list_(edit), time_, time_, plan]  # fmt: skip
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.Table.from_arrays(arrays, names=[f"c{index}" for index in range(len(arrays))])


def _loop(url: str) -> tuple[int, float]:
    with contextlib.closing(connect(url, read_only=True)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM exp.events WHERE event_type = 'plan_accepted' ORDER BY id")
        ids = cursor.fetchall()
        rows = []
        for (id_,) in ids[:LOOP_ROWS]:
            cursor.execute(_STATEMENT.format(more="AND a.id = %(id)s"), {"edits": list(EDIT_TYPES), "id": id_})
            rows += cursor.fetchall()
        _typed(rows)
    return len(ids), len(ids) / len(rows)


def _pandas(url: str) -> tuple[int, float]:
    frames = {}
    with contextlib.closing(connect(url, read_only=True)) as connection, connection.cursor() as cursor:
        for name, query in _COLUMNS.items():
            buffer = io.BytesIO()
            cursor.copy_expert(f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER)", buffer)
            buffer.seek(0)
            frames[name] = pd.read_csv(buffer)
    events, pantry = frames["events"], frames["pantry"]
    events["timestamp"] = pd.to_datetime(events["timestamp"], format="ISO8601", utc=True)
    pantry["snapshot_time"] = pd.to_datetime(pantry["snapshot_time"], format="ISO8601", utc=True)
    pantry["items"] = pantry["items"].map(json.loads)
    events["payload"], events["context"] = events["payload"].map(json.loads), events["context"].map(json.loads)
    events["plan_id"] = events["payload"].map(lambda payload: payload["plan_id"])
    events["plan"] = events["payload"].map(lambda payload: payload.get("plan"))
    kinds = dict(iter(events.groupby("event_type")))
    accepted, generated = kinds.pop("plan_accepted"), kinds.pop("plan_generated")
    rows = accepted.merge(generated, on=["unit_id", "plan_id"], suffixes=("", "_generated"))
    rows = rows.sort_values("timestamp_generated")
    rows = pd.merge_asof(
        rows, pantry.sort_values("snapshot_time").rename(columns={"household_id": "unit_id"}), by="unit_id",
        left_on="timestamp_generated", right_on="snapshot_time", suffixes=("", "_pantry"),
    )  # fmt: skip
    earlier = accepted[["unit_id", "timestamp", "plan"]].sort_values("timestamp")
    rows = pd.merge_asof(
        rows, earlier.rename(columns={"timestamp": "before"}), by="unit_id", left_on="timestamp_generated",
        right_on="before", allow_exact_matches=False, suffixes=("", "_previous"),
    )  # fmt: skip
    edits = events[events["event_type"].isin(EDIT_TYPES)].groupby("plan_id")["payload"].agg(list)
    rows = rows.join(edits.rename("edits"), on="plan_id")
    rows = rows.merge(frames["households"], left_on="unit_id", right_on="id", suffixes=("", "_household"))
    rows = rows.merge(frames["constraints"], left_on="unit_id", right_on="household_id", suffixes=("", "_limits"))
    with tempfile.TemporaryDirectory() as folder:
        keep = ["unit_id", "size", "items", "budget", "max_prep_time", "plan", "plan_generated", "plan_previous",
                "edits", "timestamp", "timestamp_generated"]  # fmt: skip
        rows[keep].to_parquet(f"{folder}/rows.parquet", compression="zstd")
    return len(rows), 1


METHODS: dict[str, Callable[[str], tuple[int, float]]] = {
    "ours": _ours,
    "copy": _copy,
    "sql": _sql,
    "adbc": _adbc,
    "loop": _loop,
    "pandas": _pandas,
    "duckdb": _duckdb,
    "feast": _feast,
    "sharded": _sharded,
    "earlier": _earlier,
    "later": _later,
}

if __name__ == "__main__":
    main()
