"""Where a build works, and how its folder becomes a version: whole or not at all, on local disk.

In: the root folder of the datasets. Out: a hidden working folder beside the versions, locked while its builder lives,
and renamed into place at the end. What killed builders left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from planner.contracts.errors import DatasetError

_PART, _LOCK = ".part", ".lock"


@contextlib.contextmanager
def working_folder(parent: Path, version: str) -> Iterator[Path]:
    """A new hidden folder in `parent`, removed at the end of the block unless `publish_folder` moved it.

    Raises:
        DatasetError: no space or no permission; names the folder. Any write inside the block counts too.
    """
    lock: FileLock | None = None
    part = parent / f".{version}.{uuid.uuid4().hex[:12]}{_PART}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _lock(parent / f".builders{_LOCK}", timeout=30):
            _remove_litter(parent)
            lock = _lock(part.with_suffix(_LOCK), timeout=0)
            lock.acquire()
            part.mkdir()
            (part / "probe").write_bytes(b"0" * 4096)
            (part / "probe").unlink()
        yield part
    except BrokenPipeError:  # nobody reads what is told of the progress: not the folder's fault
        raise
    except OSError as error:
        raise folder_error(parent, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            with contextlib.suppress(OSError):
                part.with_suffix(_LOCK).unlink(missing_ok=True)
            lock.release()


def publish_folder(part: Path, target: Path) -> bool:
    """Make the working folder the version `target`; False where another builder was there first.

    Everything is on the disk before the one rename that makes it visible.
    """
    for path in part.iterdir():
        sync(path)
    sync(part)
    try:
        os.rename(part, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    sync(target.parent)
    return True


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(path: Path, *, timeout: float) -> FileLock:
    return FileLock(path, timeout=timeout, fallback_to_soft=False)


def _remove_litter(parent: Path) -> None:
    """Remove the folders of builders that are gone: a living one holds its lock."""
    for lock_path in parent.glob(f".*{_LOCK}"):
        part = lock_path.with_suffix(_PART)
        if lock_path.name == f".builders{_LOCK}":
            continue
        with contextlib.suppress(Timeout), _lock(lock_path, timeout=0):
            shutil.rmtree(part, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
    for part in parent.glob(f".*{_PART}"):
        if not part.with_suffix(_LOCK).exists():
            shutil.rmtree(part, ignore_errors=True)


def folder_error(folder: Path, error: OSError) -> DatasetError:
    """The error of a datasets folder that cannot be written; says what to do."""
    reason = error.strerror or str(error).split("\n")[0]
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        advice = "Free some space there, or set build_dataset.datasets to another folder."
    else:
        advice = "Allow writing there, or set build_dataset.datasets to another folder."
    return DatasetError(f"The datasets folder {folder} cannot be written: {reason}. {advice}", folder=folder)
