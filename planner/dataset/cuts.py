"""Where to cut the rows of a build into ranges of time that fit into memory, from a sample of their times."""

from __future__ import annotations

import threading

import numpy as np

RANGE_ROWS = 10_000
_MOST = 1 << 16


class Cuts:
    """A sample of times, every n-th of those that come; n doubles where too many are kept. Threads may share it."""

    def __init__(self) -> None:
        self._kept = np.empty(0, np.int64)
        self._step, self._seen = 1, 0
        self._lock = threading.Lock()

    def add(self, us: np.ndarray) -> None:
        """Some times more, in microseconds."""
        with self._lock:
            self._kept = np.concatenate([self._kept, us[-self._seen % self._step :: self._step]])
            self._seen += len(us)
            while len(self._kept) > _MOST:
                self._kept, self._step = self._kept[::2], self._step * 2

    def bounds(self) -> np.ndarray:
        """Times, ascending: a range of about `RANGE_ROWS` rows begins with each, but the first, which has no begin."""
        ranges = -(-self._seen // RANGE_ROWS)
        if ranges <= 1:
            return np.empty(0, np.int64)
        sample = np.sort(self._kept)
        at = (np.arange(1, ranges) * len(sample)) // ranges
        bounds: np.ndarray = np.unique(sample[at])
        return bounds
