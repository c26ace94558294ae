"""Copies of the checkpoints in a store that outlives the machine, such as a bucket.

In: the folder of a run's checkpoints, and a `Store` that the caller brings (this room knows no S3). Out: the same
checkpoints there, each manifest last; or back again, verified, where this machine lacks them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from planner.training.checkpoint import FIGURES, MANIFEST, TENSORS, is_whole


class Store(Protocol):
    """Objects by name; a put is there whole or not at all. Errors are the store's own `TrainingError`s."""

    def put(self, name: str, content: bytes) -> None:
        """Write an object, over one that is there."""

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None without it."""

    def names(self, prefix: str) -> list[str]:
        """The names that start with the prefix."""

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""


def push(store: Store, run: str, folder: Path) -> None:
    """Make the run's checkpoints in the store those of the folder.

    New ones first, files before their manifest; then what the folder no longer has goes, its manifest first. A kill at
    any moment leaves the ones before whole. What is no whole checkpoint is left where it is.
    """
    here = {path.name for path in folder.glob("step-*")}
    for step in sorted(here):
        manifest = folder / step / MANIFEST
        there = store.get(f"{run}/{step}/{MANIFEST}")
        if manifest.is_file() and there == manifest.read_bytes():
            continue
        if not is_whole(folder / step):  # damaged, or none of ours; a copy of before stays
            continue
        if there is not None:  # of a start that went another way: no reader may take its manifest for these files
            store.delete(f"{run}/{step}/{MANIFEST}")
        for name in (TENSORS, FIGURES, MANIFEST):
            store.put(f"{run}/{step}/{name}", (folder / step / name).read_bytes())
    gone = [name for name in store.names(f"{run}/step-") if name.split("/")[-2] not in here]
    for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
        store.delete(name)


def pull(store: Store, run: str, folder: Path) -> None:
    """Bring the store's checkpoints that are whole and that the folder has not; a damaged one is left where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in store.names(f"{run}/step-"):
        if not name.endswith(f"/{MANIFEST}"):
            continue
        step = name.split("/")[-2]
        if is_whole(folder / step):
            continue
        part = folder / f".{step}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for file in (TENSORS, FIGURES, MANIFEST):
            content = store.get(f"{run}/{step}/{file}")
            if content is not None:
                (part / file).write_bytes(content)
        if is_whole(part):
            shutil.rmtree(folder / step, ignore_errors=True)
            part.rename(folder / step)
        shutil.rmtree(part, ignore_errors=True)
