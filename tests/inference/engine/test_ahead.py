"""srpo_jax/inference/engine/ahead.py: a thread that makes items beforehand, and its end."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from srpo_jax.inference.engine.ahead import Ahead

PATIENCE = 20.0


def until(true) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_makes_so_many_beforehand_in_order():
    """depth items and the one in hand, no more, while nobody asks; then all, as they come."""
    made = []

    def source():
        for i in range(9):
            made.append(i)
            yield i

    with Ahead(source(), depth=2) as items:
        until(lambda: len(made) == 3)
        time.sleep(0.05)
        assert made == [0, 1, 2]
        assert list(items) == list(range(9))
    assert items.error is None


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_the_source_raises_comes_after_what_it_gave(error):
    """The iteration ends with the last item, and `error` says why."""

    def source():
        yield 1
        yield 2
        raise error

    with Ahead(source(), depth=1) as items:
        assert list(items) == [1, 2]
    assert items.error is error


def test_without_a_thread_nothing_is_made_beforehand():
    """depth 0: each item when it is asked for, in the caller's thread; errors as with one."""
    made, error = [], ValueError("no")

    def source():
        for i in range(3):
            made.append(threading.current_thread())
            yield i
        raise error

    with Ahead(source(), depth=0) as items:
        for count, item in enumerate(items):
            assert item == count and made == [threading.current_thread()] * (count + 1)
    assert items.error is error


def test_behind_its_end_the_source_is_left_alone():
    """Whoever leaves in the middle is the last to whom the source gives anything: what a source
    takes for its items (leases) is not taken any more."""
    made, working = [], threading.Event()

    def source():
        for i in itertools.count():
            if i > 3:
                working.set()
                time.sleep(0.05)  # busy with an item when it ends
            made.append(i)
            yield i

    with pytest.raises(RuntimeError, match="enough"), Ahead(source(), depth=2) as items:
        for item in items:
            if item == 2:
                assert working.wait(PATIENCE)
                raise RuntimeError("enough")
    count = len(made)
    time.sleep(0.3)
    assert len(made) == count and not any(t.name == "ahead" for t in threading.enumerate())
