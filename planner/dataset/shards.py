"""A build in shards of households: each with its own connections, all in one snapshot of a server.

In: tasks, one per shard. Out: per shard a file of its rows in the order of the dataset, and its counts; `merge.py`
makes one stream of them. A shard runs in this process, in a process of its own (this module's `main`), or on Spark.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from planner.contracts import errors
from planner.contracts.errors import DatasetError, PlannerError
from planner.dataset.coded import rows_as
from planner.dataset.counts import Counts
from planner.dataset.publish import folder_error
from planner.dataset.queries import Shard
from planner.dataset.rows import Source, built_rows, system_memory
from planner.dataset.write import ROW_SCHEMA

_PART_ROWS = 1024  # a merge holds a batch of each shard
_PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class ShardResult:
    """Counts of one shard; its rows lie in the folder under its index."""

    index: int
    counts: Counts

    def to_json(self) -> str:
        """For another process."""
        return json.dumps({"index": self.index, "counts": self.counts.to_json()})

    @classmethod
    def from_json(cls, text: str) -> ShardResult:
        """Its inverse."""
        value = json.loads(text)
        return cls(value["index"], Counts.from_json(value["counts"]))


def build_shard(source: Source, folder: Path) -> ShardResult:
    """Write the rows of a shard and the numbers of the earlier rows that it takes.

    Raises:
        DatabaseError: the server refused or went away, or the snapshot is gone.
    """
    index, spill = source.shard.index, folder / f"spill-{source.shard.index}"
    spill.mkdir()
    try:
        with (
            system_memory(),
            built_rows(source, spill, lambda done, total, what: None) as built,
            pa.OSFile(str(part_paths(folder, index)[0]), "wb") as file,
            pa.ipc.new_stream(file, ROW_SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
        ):
            for group in built.batches():
                batch = rows_as(group, ROW_SCHEMA)
                for start in range(0, batch.num_rows, _PART_ROWS):
                    writer.write_batch(batch.slice(start, _PART_ROWS))
            np.save(part_paths(folder, index)[1], built.reused)
    finally:
        shutil.rmtree(spill, ignore_errors=True)
    return ShardResult(index, built.counts)


def run_shards(
    tasks: Sequence[Source], folder: Path, *, processes: int, done: Callable[[int], None]
) -> list[ShardResult]:
    """Run the shards, in this process or in `processes` of their own; `done` is told how many are finished.

    Raises:
        PlannerError: of the first shard that failed; the others are ended.
    """
    results: list[ShardResult] = []
    if processes == 1:
        for task in tasks:
            results.append(build_shard(task, folder))
            done(len(results))
        return results
    running: set[subprocess.Popen[bytes]] = set()
    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(_run_apart, task, folder, running) for task in tasks]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                done(len(results))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
            raise
    return sorted(results, key=lambda result: result.index)


def shard_rows(folder: Path, index: int) -> Iterator[pa.RecordBatch]:
    """The rows of a finished shard."""
    with pa.OSFile(str(part_paths(folder, index)[0]), "rb") as file:
        yield from pa.ipc.open_stream(file)


def shard_numbers(folder: Path, count: int) -> np.ndarray:
    """Numbers of the earlier version's rows that all shards take, ascending."""
    return np.sort(np.concatenate([np.load(part_paths(folder, index)[1]) for index in range(count)]))


def part_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Where the rows of a shard lie, and the numbers of the earlier rows."""
    return folder / f"shard-{index}.arrow", folder / f"shard-{index}.reused.npy"


def main() -> int:
    """Build the shard that stands on the first line of the input; end when the input ends, for then nobody waits.

    The folder lies within the working folder of a build, that one in the folder of the datasets.
    """
    task = Source.from_json(sys.stdin.readline())
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    try:
        print(build_shard(task, folder).to_json(), flush=True)
    except PlannerError as error:
        print(error_json(error), flush=True)
    except OSError as error:
        print(error_json(folder_error(folder.parents[1], error)), flush=True)
    return 0


def _end_with_the_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _run_apart(task: Source, folder: Path, running: set[subprocess.Popen[bytes]]) -> ShardResult:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_PROJECT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "planner.dataset.shards", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        running.add(process)
        assert process.stdin is not None and process.stdout is not None
        # The pipe stays open while we live: the shard ends with us, however we end.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(task.to_json().encode() + b"\n")
            process.stdin.flush()
        answer = process.stdout.readline().decode()
        running.discard(process)
    return result_of(answer, task.shard)


def error_json(error: PlannerError) -> str:
    """An error as `result_of` reads it."""
    return json.dumps({"error": type(error).__name__, "message": str(error)})


def result_of(answer: str, shard: Shard) -> ShardResult:
    """What a shard said.

    Raises:
        PlannerError: its error.
    """
    found: Mapping[str, Any] = json.loads(answer) if answer else {}
    if "error" in found:
        kind = getattr(errors, found["error"], DatasetError)
        raise kind(found["message"])
    if not found:
        raise DatasetError(
            f"Shard {shard.index} of {shard.count} was ended from outside, perhaps for want of memory. Nothing was "
            "published; run it again, with more shards or fewer processes.",
            shard=shard.index,
        )
    return ShardResult.from_json(answer)


if __name__ == "__main__":
    sys.exit(main())
