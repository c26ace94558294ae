"""What cannot be written, as one clear line: a full disk, no permission, a file where a folder is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from planner.contracts.errors import TrainingError


@contextmanager
def written_to(folder: Path, what: str, **facts: object) -> Iterator[None]:
    """Write `what` in the block.

    Raises:
        TrainingError: it cannot be written to the folder; carries the facts.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system said
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(
            f"{what} cannot be written to {folder}: {reason}. Make room or give write permission, then run the same "
            "command again; it goes on from the newest checkpoint that is whole.",
            folder=folder,
            **facts,
        ) from None
