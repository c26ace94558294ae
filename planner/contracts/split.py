"""Which split a household is in: the same in every dataset version, for ever."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "validation", "test")
# Shares in per cent. Constants and not configuration: a household that changed its split between two
# dataset versions would be trained on in one and replayed in the other.
VALIDATION_PERCENT = 10
TEST_PERCENT = 10


def split_of(household_id: str) -> str:
    """Split of a household by the SHA-256 of its id: 80 % train, 10 % validation, 10 % test."""
    bucket = int.from_bytes(hashlib.sha256(b"planner-split:" + household_id.encode()).digest()[:8], "big") % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "validation" if bucket < TEST_PERCENT + VALIDATION_PERCENT else "train"


def stable_order(text: str, seed: int = 0) -> int:
    """A number that orders texts at random but the same in every process; for samples that must be repeatable."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")
