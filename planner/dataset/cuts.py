"""Where to cut many rows into ranges that fit into memory, from a sample of the times or ids that put them in order."""

from __future__ import annotations

import threading

import numpy as np

_MOST = 1 << 16


class Cuts:
    """A sample of numbers, every n-th of those that come; n doubles where too many are kept. Threads may share it."""

    def __init__(self) -> None:
        self._kept = np.empty(0, np.int64)
        self._step, self._seen = 1, 0
        self._lock = threading.Lock()

    def add(self, numbers: np.ndarray) -> None:
        """Some numbers more, of 64 bits."""
        with self._lock:
            self._kept = np.concatenate([self._kept, numbers[-self._seen % self._step :: self._step]])
            self._seen += len(numbers)
            while len(self._kept) > _MOST:
                self._kept, self._step = self._kept[::2], self._step * 2

    def bounds(self, rows: int) -> np.ndarray:
        """Numbers, ascending: a range of about so many rows begins with each, but the first, which has no begin."""
        ranges = -(-self._seen // rows)
        if ranges <= 1:
            return np.empty(0, np.int64)
        sample = np.sort(self._kept)
        at = (np.arange(1, ranges) * len(sample)) // ranges
        bounds: np.ndarray = np.unique(sample[at])
        return bounds
