"""What was made, kept as long as there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

CACHE_BYTES = 256 * 2**20


class ByteCache:
    """Least recently used entries up to a number of bytes. Thread-safe.

    Two threads that miss the same key at once both make the value: it is the same value.
    """

    def __init__(self, max_bytes: int):
        self._max, self._used = max_bytes, 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = (value, size(value))
                self._used += self._entries[key][1]
                while self._used > self._max:
                    self._used -= self._entries.popitem(last=False)[1][1]
        return value
