from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from planner.contracts.errors import DatabaseError
from planner.promotion import transactions
from planner.promotion.policy import ensure_policy_version
from planner.promotion.transactions import read_rows, run_serialised

Ask = Callable[..., list[tuple[Any, ...]]]


class Wire:
    """A socket in front of the server that breaks at the client's first COMMIT, before or behind the server's part."""

    commits_to_break = 1

    def __init__(self, target: str, folder: Path, *, forward_commit: bool) -> None:
        self.target, self.forward_commit, self.broken = target, forward_commit, 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(folder / ".s.PGSQL.5432"))
        self.listener.listen()
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for end in [self.listener, *self.ends]:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            self.ends += [client, server]
            server.connect(self.target)
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
            threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other end may hang up first
            self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(65536):
            if data.endswith(b"COMMIT\x00") and self.broken < self.commits_to_break:
                self.broken += 1
                client.shutdown(socket.SHUT_RDWR)
                if self.forward_commit:
                    server.sendall(data)
                    continue
                break
            server.sendall(data)
        server.shutdown(socket.SHUT_RDWR)

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def broken_wire(db: Connection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Connection]]:
    folder = db.info.host
    if not folder.startswith("/"):
        pytest.skip("the test server has no unix socket to stand in front of")
    wires, connections = [], []

    def open_one(forward_commit: bool) -> Connection:
        place = tmp_path_factory.mktemp("w")
        wires.append(Wire(f"{folder}/.s.PGSQL.{db.info.port}", place, forward_commit=forward_commit))
        parameters = {**db.info.dsn_parameters, "password": db.info.password}
        assert len(str(place)) < 85, "with the socket's name it has to fit the 107 bytes of sun_path"
        connections.append(psycopg2.connect(**{**parameters, "host": str(place), "port": "5432"}))
        return connections[-1]

    yield open_one
    for connection in connections:
        connection.close()
    for wire in wires:
        wire.close()


@pytest.mark.parametrize("committed", [True, False], ids=["answer lost", "commit lost"])
def test_after_an_unknown_commit_the_row_stands_exactly_once(
    broken_wire: Callable[[bool], Connection], ask: Ask, committed: bool
) -> None:
    connection = broken_wire(committed)
    version = ensure_policy_version(
        connection, policy="p", model_name="planner_model", model_version="1", config_defaults={}
    )
    assert connection.closed  # so the wire did break
    assert version.created is not committed
    assert ask("SELECT id, version FROM exp.policy_versions") == [(version.id, 1)]


def test_a_database_that_stays_away_after_an_unknown_commit_is_said_in_one_line(
    broken_wire: Callable[[bool], Connection], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = broken_wire(True)
    monkeypatch.setattr(Wire, "commits_to_break", 2)
    with pytest.raises(DatabaseError, match="unknown whether it stands. Run the command again") as lost:
        ensure_policy_version(connection, policy="p", model_name="planner_model", model_version="1", config_defaults={})
    assert "\n" not in str(lost.value)
    assert ask("SELECT count(*) FROM exp.policy_versions") == [(1,)]


def test_a_connection_lost_before_commit_writes_nothing_and_says_so(db: Connection, ask: Ask) -> None:
    def work(cursor: Any) -> None:
        cursor.execute("INSERT INTO exp.policies (name) VALUES ('p')")
        ask("SELECT pg_terminate_backend(%s)", db.info.backend_pid)
        cursor.execute("SELECT 1")

    with pytest.raises(DatabaseError, match="Nothing of it was written"):
        run_serialised(db, "a", work, what="the policy")
    assert ask("SELECT count(*) FROM exp.policies") == [(0,)]
    with pytest.raises(DatabaseError, match="closed"):
        run_serialised(db, "a", lambda cursor: None, what="the policy")


def test_an_open_transaction_of_the_caller_is_never_committed(db: Connection, ask: Ask) -> None:
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO exp.policies (name) VALUES ('mine')")
    with pytest.raises(DatabaseError, match="open transaction"):
        run_serialised(db, "a", lambda cursor: None, what="nothing")
    db.rollback()
    assert ask("SELECT count(*) FROM exp.policies") == [(0,)]


def test_a_lock_that_is_not_given_back_ends_in_a_message(
    db: Connection, connect: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LOCK_TIMEOUT_S", 0.05)
    holder = connect()

    def hold(cursor: Any) -> None:
        with pytest.raises(DatabaseError, match="held the lock on the policy"):
            run_serialised(db, "a", lambda cursor: None, what="the policy")

    run_serialised(holder, "a", hold, what="the policy")
    run_serialised(db, "a", lambda cursor: None, what="the policy")


@pytest.mark.parametrize("autocommit", [True, False])
def test_work_that_raises_leaves_nothing(db: Connection, ask: Ask, autocommit: bool) -> None:
    db.autocommit = autocommit

    def work(cursor: Any) -> None:
        cursor.execute("INSERT INTO exp.policies (name) VALUES ('p')")
        raise KeyError("stop")

    with pytest.raises(KeyError):
        run_serialised(db, "a", work, what="the policy")
    assert ask("SELECT count(*) FROM exp.policies") == [(0,)]


def test_reading_leaves_the_callers_transaction_as_it_was(db: Connection, ask: Ask) -> None:
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO exp.policies (name) VALUES ('mine')")
    assert read_rows(db, "SELECT name FROM exp.policies", (), what="policies") == [("mine",)]
    db.rollback()
    assert read_rows(db, "SELECT name FROM exp.policies", (), what="policies") == []
    assert db.info.transaction_status == 0


def test_a_reader_without_the_right_to_write_is_told_what_to_grant(db: Connection) -> None:
    with db, db.cursor() as cursor:
        cursor.execute("SET ROLE pg_read_all_data")
    with pytest.raises(DatabaseError, match="permission denied .* Grant it"):
        ensure_policy_version(db, policy="p", model_name="planner_model", model_version="1", config_defaults={})


def test_a_standby_is_told_from_a_user_without_the_right_to_write(db: Connection) -> None:
    db.set_session(readonly=True)
    with pytest.raises(DatabaseError, match="read-only transaction.* name the primary") as refused:
        ensure_policy_version(db, policy="p", model_name="planner_model", model_version="1", config_defaults={})
    assert "Grant" not in str(refused.value)
