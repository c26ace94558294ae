"""A real hot standby: a server that replays what another one writes, as a site's read replica does."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from planner.dataset import embedded
from tests.databases import run_statement, value_of


@contextlib.contextmanager
def hot_standby(primary_url: str, folder: Path) -> Iterator[str]:
    """URL of the same database on a standby of the server, which is the embedded one; its data lie under `folder`."""
    owner, sockets = embedded._server_owner(), Path(unquote(primary_url.rpartition("host=")[2]))
    primary = sockets.parent / "data"
    binaries = embedded._reachable_binaries(sockets.parent, owner)
    _let_replicate(primary, primary_url)
    data = folder / "data"
    command = [
        str(binaries / "pg_basebackup"), "-D", str(data), "-h", str(sockets), "-U", embedded.ROLE, "-R", "-X", "stream",
        "--checkpoint=fast", "--no-sync",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env=embedded._environment())
    for path in (data, *data.rglob("*")):
        os.chown(path, owner.uid, owner.gid)
    own = embedded._socket_folder(folder, owner)
    server = embedded._start(binaries, data, own, folder / "server.log", owner, fsync=False)
    try:
        yield primary_url.replace(primary_url.rpartition("host=")[2], embedded.quote(str(own)))
    finally:
        embedded._stop(server)
        shutil.rmtree(own, ignore_errors=True)


def await_replay(primary_url: str, standby_url: str) -> None:
    """Wait until the standby has replayed what its primary has written."""
    position = value_of(primary_url, "SELECT pg_current_wal_lsn()::text")
    deadline = time.monotonic() + 30
    while value_of(standby_url, f"SELECT pg_last_wal_replay_lsn() < '{position}'"):
        assert time.monotonic() < deadline, "the standby does not replay"
        time.sleep(0.05)


def _let_replicate(data: Path, url: str) -> None:
    for name, line in (
        ("pg_hba.conf", "local replication all peer map=planner\n"),
        ("pg_ident.conf", "".join(f'planner "{user}" {embedded.ROLE}\n' for user in embedded.SERVER_USERS)),
    ):
        with (data / name).open("a", encoding="utf-8") as file:
            file.write(line)
    run_statement(url, "SELECT pg_reload_conf()")
