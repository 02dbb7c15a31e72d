"""What an iterator gives, made in a thread while the device is busy with what it gave before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()
_WAIT = 0.1  # seconds between two looks at whether the consumer has gone


class Ahead(Generic[T]):
    """Iterates over `source`, of which a thread makes up to `depth` items beforehand; 0: there is
    no thread. In a `with`, whose end waits until the thread has stopped at its next item: then
    `source` is asked for nothing more. What the source raises is kept as `error` and ends the
    iteration, so that what was begun before it can be finished.
    """

    def __init__(self, source: Iterable[T], depth: int):
        self.error: BaseException | None = None
        self._source, self._depth = source, depth
        self._items: queue.Queue[Any] = queue.Queue(depth)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)

    def __enter__(self) -> Ahead[T]:
        if self._depth:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._depth:
            self._thread.join()

    def __iter__(self) -> Iterator[T]:
        if not self._depth:
            try:
                yield from self._source
            except Exception as error:
                self.error = error
            return
        while True:
            item = self._items.get()
            if item is _END:
                return
            yield item

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    return
        except BaseException as error:
            self.error = error
        self._put(_END)

    def _put(self, item: Any) -> bool:
        while not self._over.is_set():
            try:
                self._items.put(item, timeout=_WAIT)
                return True
            except queue.Full:
                continue
        return False
