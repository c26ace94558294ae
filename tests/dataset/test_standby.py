"""Builds that read a real hot standby, alone and beside its primary: the same bytes, clear words where it cannot."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.contracts.errors import DatabaseError
from planner.dataset import gather, pantries, rows
from planner.dataset.build import BuildReport, build_dataset
from planner.dataset.embedded import embedded_postgres
from planner.dataset.pantries import Pantries
from planner.dataset.session import Session
from planner.dataset.values import Notes
from tests.databases import run_statement, value_of
from tests.dataset import small
from tests.dataset.standby import await_replay, hot_standby

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """URLs of a primary and its standby."""
    folders = [Path(tempfile.mkdtemp(prefix=f"planner-{name}-")) for name in ("primary", "standby")]
    try:
        for folder in folders:
            folder.chmod(0o755)
        with embedded_postgres(folders[0], fsync=False) as primary, hot_standby(primary, folders[1]) as standby:
            assert value_of(standby, "SELECT pg_is_in_recovery()")
            small.fill(primary)
            await_replay(primary, standby)
            yield primary, standby
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def build(url: str, folder: Path, name: str = "v1", replicas: tuple[str, ...] = (), **changes: object) -> BuildReport:
    return build_dataset(url, small.config(folder, date=name, **changes), replicas=replicas)


def test_standby_gives_the_bytes_of_its_primary(servers: tuple[str, str], tmp_path: Path) -> None:
    primary, standby = servers
    whole = build(primary, tmp_path / "primary")
    alone = build(standby, tmp_path / "standby")
    both = build(primary, tmp_path / "both", replicas=(standby,), shards=3)
    only_standby = build(standby, tmp_path / "shards", shards=2)
    assert whole.num_rows == small.ROWS
    assert {report.version.digest for report in (alone, both, only_standby)} == {whole.version.digest}


def test_rows_read_from_a_standby_are_no_proof_for_later_builds(servers: tuple[str, str], tmp_path: Path) -> None:
    _, standby = servers
    build(standby, tmp_path, "first")
    again = build(standby, tmp_path, "second", reuse="first")
    assert again.reuse.num_rows == 0 and "a server in recovery was read" in again.reuse.told


def test_standby_that_lags_is_waited_for_and_then_named(
    servers: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = servers
    run_statement(standby, "SELECT pg_wal_replay_pause()")
    try:
        run_statement(primary, "UPDATE households SET region = 'north'")
        monkeypatch.setattr(gather, "REPLAY_TIMEOUT_S", 1)
        with pytest.raises(DatabaseError, match=r"is [\d,]+ bytes behind .* did not catch up in 1 s"):
            build(primary, tmp_path, replicas=(standby,), shards=2)
        assert not list(tmp_path.glob("planner/v1"))
        monkeypatch.setattr(gather, "REPLAY_TIMEOUT_S", 30)
        resume = threading.Timer(1, run_statement, [standby, "SELECT pg_wal_replay_resume()"])
        resume.start()
        report = build(primary, tmp_path, replicas=(standby,), shards=2)
        resume.join()
    finally:
        run_statement(standby, "SELECT pg_wal_replay_resume()")
    assert report.version.digest == build(primary, tmp_path / "primary").version.digest


def test_build_that_a_standby_cancels_says_what_to_do(
    servers: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = servers
    items = "SELECT n, 'home-' || n, '2025-01-04', '[]' FROM generate_series(0, 11) n"
    run_statement(primary, f"INSERT INTO pantry_snapshots {items}")
    await_replay(primary, standby)
    for module in (rows, pantries):
        monkeypatch.setattr(module, "QUERY_SNAPSHOTS", 1)
    done, both, met = list[str](), threading.Barrier(2), set[Session]()
    original = Pantries.read

    def read(self: Pantries, groups: list[int], session: Session) -> Notes:
        if session not in met:  # each is used once more, and one of them has the lock
            met.add(session)
            both.wait(60)
        return original(self, groups, session)

    monkeypatch.setattr(Pantries, "read", read)

    def progress(_: int, __: int | None, what: str) -> None:
        if what == "join the parts" and not done:
            done.append(what)
            run_statement(primary, "VACUUM FULL households")  # takes a lock that the build's transaction has
            await_replay(primary, standby)

    # A query that is in the way of replaying is cancelled at once.
    run_statement(standby, "ALTER SYSTEM SET max_standby_streaming_delay = 0")
    run_statement(standby, "SELECT pg_reload_conf()")
    with pytest.raises(DatabaseError, match="max_standby_streaming_delay"):
        build_dataset(standby, small.config(tmp_path), progress=progress)
    assert done and not list(tmp_path.glob("planner/v1"))
    assert build(standby, tmp_path).num_rows == small.ROWS
