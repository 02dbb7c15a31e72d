"""`srpo_jax.judge`, killed with SIGKILL at each of its writes in turn and then run again.

As a program: `python -m tests.support.killed_judge JSON` with {"source", "place", "config",
"options"}: a copy of the folder source is judged in the folder place, where "{place}" in an option
is its path. It prints a JSON object: "kills", how many there were, and "ends", the contents after
each rerun, as one digest each of all files but hidden ones, replies and usage.jsonl; the last one
is of a run that was left alone. A process of its own, as it forks.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys

from srpo_jax.configs import common
from srpo_jax.judge.judge import judge
from tests.support.killed import killed_in_child

PASSED_OVER = ("replies", "usage.jsonl")


def main(source: str, place: str, config: dict, options: dict) -> None:
    ends, number, killed = [], 0, True
    while killed:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        killed = _in_child(place, config, options, number)
        if killed and _in_child(place, config, options, None):
            raise SystemExit("killed without a reason")
        ends.append(_digest(pathlib.Path(place)))
        number += 1
    print(json.dumps({"kills": number - 1, "ends": ends}))


def _in_child(place: str, config: dict, options: dict, kill_at: int | None) -> bool:
    """Whether the judge was killed, before its write number kill_at from 0."""

    def run() -> int:
        if kill_at is not None:
            _kill_at(kill_at)
        judge(_config(config), place, **_filled(options, place))
        return 0

    return killed_in_child(run, "judging failed")


def _kill_at(number: int) -> None:
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            return function(*args, **kwargs)

        return call

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)


def _config(fields: dict):
    made = common.get_config()
    for name, value in fields.items():
        section, field = name.split(".")
        setattr(getattr(made, section), field, value)
    return made


def _filled(options: dict, place: str) -> dict:
    return {
        name: value.replace("{place}", place) if isinstance(value, str) else value
        for name, value in options.items()
    }


def _digest(folder: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and inside.parts[0] not in PASSED_OVER:
            digest.update(f"{inside}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
