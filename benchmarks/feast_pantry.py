"""Feast's point-in-time join of the pantry alone, on the benchmark's database; run by an interpreter that has Feast.

In: the database's URL. Out: a JSON line with the rows that came back. Run by `benchmarks/dataset.py --feast PYTHON`;
it imports nothing of the project, since Feast's pins do not go with ours.
"""

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import String
from feast.value_type import ValueType


def main() -> None:
    parts = urlsplit(sys.argv[1])
    host = unquote(parse_qs(parts.query).get("host", [parts.hostname or "localhost"])[0])
    with tempfile.TemporaryDirectory() as folder:
        config = RepoConfig(
            project="bench",
            provider="local",
            registry=f"{folder}/registry.db",
            repo_path=Path(folder),
            entity_key_serialization_version=3,
            online_store=None,
            offline_store={
                "type": "postgres", "host": host, "port": parts.port or 5432, "database": parts.path.strip("/"),
                "db_schema": "public", "user": parts.username or "planner", "password": parts.password or "",
            },
        )  # fmt: skip
        store = FeatureStore(config=config)
        household = Entity(name="household", join_keys=["household_id"], value_type=ValueType.STRING)
        source = PostgreSQLSource(
            name="pantry",
            query="SELECT household_id, snapshot_time, items::text AS items FROM public.pantry_snapshots",
            timestamp_field="snapshot_time",
        )
        view = FeatureView(
            name="pantry", entities=[household], ttl=timedelta(days=400), schema=[Field(name="items", dtype=String)],
            source=source, online=False,
        )  # fmt: skip
        store.apply([household, view])
        entities = (
            'SELECT unit_id AS household_id, "timestamp" AS event_timestamp, id::text AS event_id FROM exp.events '
            "WHERE event_type = 'plan_generated'"
        )
        found = store.get_historical_features(entity_df=entities, features=["pantry:items"]).to_arrow()
        print(json.dumps({"rows": found.num_rows}))


if __name__ == "__main__":
    main()
