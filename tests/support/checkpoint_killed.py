"""Saves into a bucket that are killed at moments all over a save, for test_bucket_folder.py.

`python checkpoint_killed.py` prints a line of JSON. The bucket is here; who saves and restores is
forked, before jax starts anything here, and killed by the bucket when it asks for its n-th change.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from srpo_jax.train.checkpoint.manager import Checkpoints
from srpo_jax.train.checkpoint.seal import steps_in
from tests.support.bucket_server import Change, Lost, serving
from tests.support.checkpoint_places import InBucket
from tests.support.killed import ended, forked
from tests.train.checkpoint.test_manager import RUN, make_state, same, target_of

MOMENTS = 10
MARKER = "commit_success.txt"
PROBE = "/.probe"  # what a start writes to see whether it can


def go_on(address: str, to: int) -> None:
    """Restores what is there, bit for bit, and saves one step more if that is not step `to`. One
    step is kept.
    """
    with Checkpoints(address, keep=1) as checkpoints:
        state, _ = checkpoints.restore(target_of(make_state(1)), lambda run: None)
        step = 0 if state is None else int(state.step)
        assert state is None or same(state, make_state(step))
        assert checkpoints.skipped == []
        if step < to:
            checkpoints.save(make_state(step + 1), RUN)
            checkpoints.verify(step + 1, target_of(make_state(step + 1)))


def main() -> int:
    with serving({}) as bucket:
        place = InBucket(bucket)
        assert ended(forked(lambda: go_on(place.address, 1))) == 0
        first = bucket.all()
        bucket.changes.clear()
        assert ended(forked(lambda: go_on(place.address, 2))) == 0
        total = sum(1 for change in bucket.changes if not change.name.endswith(PROBE))
        end = total - 5  # not every save makes the same number
        number = [round(each * end / (MOMENTS - 1)) for each in range(MOMENTS)]
        moments = [killed(place, first, lambda count, _, at=at: count >= at) for at in number]
        for kind, step in (("put", 2), ("remove", 1)):
            at = Change(kind, f"{place.address.removeprefix('gs://')}/{step}/{MARKER}")
            moments.append(killed(place, first, lambda _, change, at=at: change == at))
    print(json.dumps({"moments": moments}))
    return 0


def killed(
    place: InBucket, first: dict[str, bytes], when: Callable[[int, Change], bool]
) -> dict[str, Any]:
    """What is seen when step 1 is there, and who saves step 2 is killed before a change.

    when: says before which, given how many were made and the next one.
    """
    bucket = place.bucket
    for name in bucket.all():
        bucket.remove(name)
    for name, data in first.items():
        bucket.put(name, data)
    child, count = 0, 0

    def before(change: Change) -> None:
        nonlocal count
        if change.name.endswith(PROBE):
            return
        if when(count, change):
            os.kill(child, signal.SIGKILL)
            raise Lost
        count += 1

    bucket.before = before
    child = forked(lambda: go_on(place.address, 2))
    code = ended(child)
    bucket.before = lambda _: None
    steps = steps_in(place.address)
    assert ended(forked(lambda: go_on(place.address, 2))) == 0
    left = sorted(place.steps())
    return {"killed": code == -signal.SIGKILL, "steps": steps, "left": left}


if __name__ == "__main__":
    sys.exit(main())
