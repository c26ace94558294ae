"""What the tests of promotion share: connections of their own, a real registry with versions, and gate results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from mlflow import MlflowClient
from psycopg2.extensions import connection as Connection

from planner.contracts.gate import SCORES, GateResult, Verdict

POLICY = "planner_policy"
DEFAULTS = {"temperature": 0.0, "max_tokens": 512}


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[..., Connection]]:
    opened: list[Connection] = []

    def open_one(**options: Any) -> Connection:
        opened.append(psycopg2.connect(database_url, **options))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    return connect()


@pytest.fixture
def ask(connect: Callable[..., Connection]) -> Callable[..., list[tuple[Any, ...]]]:
    """Rows as another session sees them."""
    other = connect()
    other.autocommit = True

    def run(query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with other.cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def gate() -> Callable[..., GateResult]:
    def make(**changes: Any) -> GateResult:
        values: dict[str, Any] = {
            "verdict": Verdict.PASS,
            "reasons": (),
            "model_name": "planner_model",
            "model_version": "2",
            "baseline_version": "1",
            "dataset_version": "2025-01-03",
            "dataset_digest": "d" * 32,
            "split": "test",
            "num_rows": 900,
            "num_households": 240,
            "violations": 0,
            "scores": {name: 1.0 if name == "constraint_respect_score" else 0.512345678 for name in SCORES},
            "baseline_scores": dict.fromkeys(SCORES, 0.4),
        }
        return GateResult(**{**values, **changes})

    return make


@dataclass
class Registry:
    client: MlflowClient
    folder: Path
    count: int = 0

    def model(self, versions: int) -> str:
        """A registered model of its own with so many complete versions."""
        self.count += 1
        name = f"planner_{self.count}"
        self.client.create_registered_model(name)
        for _ in range(versions):
            self.client.create_model_version(name, source=self.folder.as_uri())
        return name

    def run(self) -> str:
        return str(self.client.create_run("0").info.run_id)

    def stage(self, name: str, version: str) -> str | None:
        return self.client.get_model_version(name, version).tags.get("stage")

    def candidate(self, name: str) -> str | None:
        # Its SQLite store gives version numbers as int here, and as text elsewhere.
        version = self.client.get_registered_model(name).aliases.get("candidate")
        return None if version is None else str(version)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    (folder / "model").mkdir()
    (folder / "model" / "package.json").write_text("{}")
    uri = f"sqlite:///{folder}/mlflow.db"
    return Registry(MlflowClient(tracking_uri=uri, registry_uri=uri), folder / "model")


@pytest.fixture
def experiment(ask: Callable[..., list[tuple[Any, ...]]]) -> str:
    """An active experiment with a control variant that has all of the traffic."""
    [(id,)] = ask(
        "INSERT INTO exp.experiments (name, status, unit_type) VALUES ('weekly', 'active', 'household') RETURNING id"
    )
    ask("INSERT INTO exp.variants (experiment_id, name, allocation) VALUES (%s, 'control', %s)", id, Decimal(1))
    return "weekly"
