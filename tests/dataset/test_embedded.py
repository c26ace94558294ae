"""The embedded server: starts, is kept to one run, survives kills, leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from planner.contracts.errors import EmbeddedServerError
from planner.dataset import embedded
from planner.dataset.database import connect
from planner.dataset.embedded import embedded_postgres, server_folder

PROJECT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from planner.dataset.embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1]), fsync=False) as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="planner-tests-"))
    path.chmod(0o755)
    yield path / "server"
    shutil.rmtree(path, ignore_errors=True)


def value(url: str, query: str) -> object:
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        connection.commit()
    return row[0] if row else None


def hold(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def servers_of(folder: Path) -> list[int]:
    data = str(server_folder(folder) / "data")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd() == data:
                found.append(process.pid)
    return found


def test_server_has_the_tables_listens_on_no_port_and_keeps_its_data(folder: Path) -> None:
    with embedded_postgres(folder, fsync=False) as url:
        assert value(url, "SHOW listen_addresses") == ""
        assert value(url, "SHOW timezone") == "UTC"
        value(url, "INSERT INTO households (id) VALUES ('h') RETURNING id")
        sockets = server_folder(folder) / "socket"
        assert sockets.stat().st_mode & 0o777 == 0o700
    assert servers_of(folder) == []
    with embedded_postgres(folder, fsync=False) as url:
        assert value(url, "SELECT count(*) FROM households") == 1


def test_server_is_stopped_when_the_block_raises(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), embedded_postgres(folder, fsync=False):
        raise KeyboardInterrupt
    assert servers_of(folder) == []


def test_second_run_on_the_same_folder_is_told_who_holds_it(folder: Path) -> None:
    holder = hold(folder)
    try:
        assert holder.stdout is not None and holder.stdout.readline().startswith("postgresql://")
        with pytest.raises(EmbeddedServerError, match=f"in use by another run .process {holder.pid}") as caught:
            with embedded_postgres(folder):
                pass
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    finally:
        holder.communicate("\n")
    assert holder.returncode == 0


@pytest.mark.parametrize("victim", ["run", "server"])
def test_next_run_starts_after_a_kill(folder: Path, victim: str) -> None:
    holder = hold(folder)
    assert holder.stdout is not None
    url = holder.stdout.readline().strip()
    value(url, "INSERT INTO households (id) VALUES ('kept') RETURNING id")
    if victim == "server":
        first = (server_folder(folder) / "data" / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(first), signal.SIGKILL)
    holder.kill()
    holder.communicate()
    with embedded_postgres(folder, fsync=False) as url:
        assert value(url, "SELECT id FROM households") == "kept"
    assert servers_of(folder) == []


def test_killed_first_setup_is_done_again(folder: Path) -> None:
    part = server_folder(folder) / "data.part"
    part.mkdir(parents=True)
    folder.chmod(0o755)
    (part / "PG_VERSION").write_text("18\n")
    with embedded_postgres(folder, fsync=False) as url:
        assert value(url, "SELECT 1") == 1
    assert not part.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a server of another user")
def test_root_uses_a_folder_of_its_own_where_the_server_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    try:
        with embedded_postgres(private / "server", fsync=False) as url:
            assert value(url, "SELECT 1") == 1
        assert server_folder(private / "server") != private / "server"
        assert (private / "server" / "server-folder.txt").read_text().strip() == str(server_folder(private / "server"))
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(server_folder(private / "server"))


def test_folder_that_is_a_file_is_a_clear_error(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot be used"), embedded_postgres(folder):
        pass


# Stands for a server in recovery: a real one needs gigabytes of log to take longer than a start may.
RECOVERING = """
import os, sys, time
for seconds in range(int(sys.argv[2])):
    print(f"LOG:  redo in progress, elapsed time: {seconds} s", flush=True)
    time.sleep(0.3)
if sys.argv[3] == "ready":
    open(sys.argv[1], "w").write("\\n".join([str(os.getpid()), *"234567", "ready"]) + "\\n")
time.sleep(60)
"""


def recovering(folder: Path, lines: int, end: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RECOVERING, str(folder / "postmaster.pid"), str(lines), end]
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log)


@pytest.mark.parametrize("end", ["ready", "silent"])
def test_a_server_in_recovery_is_waited_for_as_long_as_it_goes_on(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 3.0)
    began, server = time.monotonic(), recovering(tmp_path, 15, end)
    try:
        if end == "ready":
            embedded._await_ready(server, tmp_path, tmp_path / "server.log")
        else:
            with pytest.raises(EmbeddedServerError, match=r"silent for 3 s.*redo in progress") as failed:
                embedded._await_ready(server, tmp_path, tmp_path / "server.log")
            assert "remove" not in str(failed.value)
    finally:
        server.kill()
        server.wait()
    assert time.monotonic() - began > 4
