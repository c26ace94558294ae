"""Builds killed at random moments and versions damaged at random places, counted.

In: how many kills (as many on local disk as on S3, a server of moto's of its own) and damages; the database is the
tests' small one. Out: lines with counts; exit code 1 if a reader could take half a version for one, or a damage went
unseen. Run: `python -m benchmarks.faults [--kills 200] [--damages 300]`; takes some minutes.

A child is forked from a process that has imported everything and done nothing, builds, and gets SIGKILL after a random
part of a whole build's time. Then the place is read as a reader would: the version opens with the very bytes of a build
that nobody disturbed, or it is not there. The last build must find nothing left of all the others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from planner.contracts.errors import DatasetError
from planner.dataset import s3, versions
from planner.dataset.build import build_dataset
from planner.dataset.config import DatasetConfig
from planner.dataset.versions import open_version

BUCKET = "bucket"


@dataclass(frozen=True)
class Kills:
    """What readers saw after each kill; `half` must be 0, and `left_over` too after the last build."""

    killed: int
    ended_before: int
    whole: int
    absent: int
    half: int
    left_over: int
    same_bytes: bool


@dataclass(frozen=True)
class Damages:
    """Damages by kind, and how many of them `open_version` did not notice."""

    kinds: dict[str, int]
    unnoticed: int


def kill_builds(url: str, config: DatasetConfig, count: int, *, seed: int = 0) -> Kills:
    """Kill `count` builds of the version that the config names."""
    rng, root = random.Random(seed), Path(config.datasets)
    target = root / "planner" / config.version
    clean = _bytes_of(_clean(url, config, root))
    span = _seconds_of(lambda: build_dataset(url, config))
    shutil.rmtree(target)
    seen: Counter[str] = Counter()
    while seen["killed"] < count:
        ended = _build_and_kill(url, config, rng.uniform(0, span))
        seen["ended_before" if ended else "killed"] += 1
        state = _state(target, clean)
        seen[state] += 1
        if target.exists():
            shutil.rmtree(target)
    last = _bytes_of(_in_child(url, config, target))
    left = [path for path in target.parent.glob(".*") if path.name != ".builders.lock"]
    return Kills(seen["killed"], seen["ended_before"], seen["whole"], seen["absent"], seen["half"], len(left),
                 last == clean)  # fmt: skip


def kill_builds_on_s3(url: str, config: DatasetConfig, count: int, clean: dict[str, bytes], *, seed: int = 0) -> Kills:
    """Kill `count` builds of versions in a bucket; each goes on with what the one before it left there.

    Half of the kills come in the last third of a build's time, where it writes.
    """
    rng, seen = random.Random(seed), Counter[str]()

    def place() -> DatasetConfig:
        return config.model_copy(update={"datasets": f"s3://{BUCKET}/sets-{seen['whole'] + seen['half']}"})

    span = _seconds_of(lambda: build_dataset(url, place()))
    seen["whole"] = 1  # that one
    while seen["killed"] < count:
        ended = _build_and_kill(url, place(), rng.uniform(rng.choice((0, 0.67)) * span, span))
        seen["ended_before" if ended else "killed"] += 1
        seen[_state_on_s3(place(), clean)] += 1
    _in_child(url, place(), Path())
    same = _state_on_s3(place(), clean) == "whole"
    return Kills(seen["killed"], seen["ended_before"], seen["whole"] - 1, seen["absent"], seen["half"], 0, same)


def _state_on_s3(config: DatasetConfig, clean: dict[str, bytes]) -> str:
    """As `_state`; read in a child, since boto3 may start threads."""
    uri, states = f"{config.datasets}/planner/{config.version}", ("absent", "half", "whole")

    def read() -> None:
        with tempfile.TemporaryDirectory() as cache:
            try:
                version = open_version(uri, cache=Path(cache))
            except DatasetError:
                os._exit(10 + (s3.read_manifest(uri) is not None))
            os._exit(12 if _bytes_of(version.training_path.parent) == clean else 11)

    _, status = os.waitpid(_fork(read), 0)
    return states[os.WEXITSTATUS(status) - 10]


@contextlib.contextmanager
def bucket() -> Iterator[None]:
    """A bucket of a server of moto's in a process of its own; the environment's S3 while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                       "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_S3_ENDPOINT_URL": address}  # fmt: skip
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        os.waitpid(_fork(lambda: s3.new_client().create_bucket(Bucket=BUCKET)), 0)
        yield
    finally:
        server.kill()
        server.wait()


def damage_version(folder: Path, count: int, *, seed: int = 0) -> Damages:
    """Flip a bit, cut off the end or zero a piece of one file at a time, and open the version each time."""
    rng, kinds, unnoticed = random.Random(seed), Counter[str](), 0
    names = sorted(path.name for path in folder.iterdir())
    for _ in range(count):
        path = folder / rng.choice(names)
        whole = path.read_bytes()
        kind = rng.choice(("bit flipped", "bit flipped", "end cut off", "piece zeroed"))
        place = rng.randrange(len(whole))
        damaged = bytearray(whole)
        if kind == "bit flipped":
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == "end cut off":
            del damaged[place:]
        else:
            damaged[place : place + 512] = bytes(len(damaged[place : place + 512]))
        if bytes(damaged) == whole:
            continue
        path.write_bytes(damaged)
        kinds[kind] += 1
        with contextlib.suppress(DatasetError):
            open_version(str(folder))
            unnoticed += 1
        path.write_bytes(whole)
    open_version(str(folder))
    return Damages(dict(kinds), unnoticed)


def _clean(url: str, config: DatasetConfig, root: Path) -> Path:
    elsewhere = config.model_copy(update={"datasets": str(root / "clean")})
    return _in_child(url, elsewhere, root / "clean" / "planner" / config.version)


def _in_child(url: str, config: DatasetConfig, target: Path) -> Path:
    """Build in a child: this process must stay without threads, or its later children could not be forked."""
    child = _fork(lambda: build_dataset(url, config))
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("A build that nobody killed failed.")
    return target


def _seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    os.waitpid(_fork(work), 0)
    return time.monotonic() - began


def _build_and_kill(url: str, config: DatasetConfig, after_s: float) -> bool:
    """Whether the build had ended before the kill."""
    child = _fork(lambda: build_dataset(url, config))
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("A build failed that was not killed.")
    return not os.WIFSIGNALED(status)


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def _state(target: Path, clean: dict[str, bytes]) -> str:
    try:
        open_version(str(target))
    except DatasetError:
        return "half" if target.exists() else "absent"
    return "whole" if _bytes_of(target) == clean else "half"


def _bytes_of(folder: Path) -> dict[str, bytes]:
    """What a build must give again: the other files hold the time of the build."""
    return {name: (folder / name).read_bytes() for name in (versions.TRAINING, versions.SOURCES, versions.RECIPES)}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=300)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planner-faults-")))
        folder.chmod(0o755)
        url = stack.enter_context(_small_database(folder))
        return report(url, folder / "sets", options.kills, options.damages)


def report(url: str, root: Path, num_kills: int, num_damages: int) -> int:
    """Do both and print the counts; the exit code."""
    from tests.dataset import small

    config = small.config(root)
    local = kill_builds(url, config, num_kills)
    version = root / "planner" / config.version
    versions.DEFAULT_CACHE = root / "cache"
    with bucket():
        on_s3 = kill_builds_on_s3(url, config, num_kills, _bytes_of(version))
    for where, kills in (("on disk", local), ("on S3", on_s3)):
        print(f"{where}: builds killed {kills.killed}, half-written versions seen {kills.half} (absent {kills.absent}, "
              f"whole {kills.whole}; {kills.ended_before} more builds had ended before the kill)")  # fmt: skip
        print(f"last build: bytes of an undisturbed one {kills.same_bytes}, left of the killed ones {kills.left_over}")
    damages = damage_version(version, num_damages)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(damages.kinds.items()))
    print(f"files damaged {sum(damages.kinds.values())} ({kinds}), unnoticed {damages.unnoticed}")
    failed = any(kills.half or kills.left_over or not kills.same_bytes for kills in (local, on_s3))
    return int(bool(failed or damages.unnoticed))


@contextlib.contextmanager
def _small_database(folder: Path):  # type: ignore[no-untyped-def]
    from planner.dataset.database import connect, create_schema
    from planner.dataset.embedded import embedded_postgres
    from tests.dataset import small

    with embedded_postgres(folder, fsync=False) as url:
        with contextlib.closing(connect(url)) as connection:
            create_schema(connection)
        small.fill(url)
        yield url


if __name__ == "__main__":
    sys.exit(main())
