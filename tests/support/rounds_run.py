"""Rounds of stand-in stages, killed in the middle and at the end of each; see cli/test_run.py.

    python -m tests.support.rounds_run WORLD OUT

Every stage writes OUT/round-R/NAME.txt, a digest of the round's seed, of its policy and of what the
stage before left, and its name into OUT/done.txt. OUT/whole was never stopped; in OUT/killed a
child process dies by SIGKILL at every such moment, one after another.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import sys

from srpo_jax.cli.rounds.stages import Round, Stage
from srpo_jax.cli.rounds.walk import run_rounds
from tests.support.small_world import ArithmeticArbiter, world_config

NAMES = ("explore", "judge", "train", "export", "eval")
ROUNDS = 2


def stages(kill_at: str) -> tuple[Stage, ...]:
    """kill_at: "round stage half" or "round stage end"."""

    def stage(number: int) -> Stage:
        name = NAMES[number]

        def file(each: Round, name: str = name) -> pathlib.Path:
            return each.folder / f"{name}.txt"

        def before(each: Round) -> str:
            if number:
                return file(each, NAMES[number - 1]).read_text()
            last = pathlib.Path(each.policy).parent / "export.txt"
            return last.read_text() if each.number > 1 else "base"

        def do(each: Round) -> None:
            each.folder.mkdir(exist_ok=True)
            with open(each.folder.parent / "done.txt", "a") as log:
                log.write(f"{each.number} {name}\n")
            text = hashlib.sha256(f"{each.seed} {name} {before(each)}".encode()).hexdigest()
            for when, part in (("half", text[:9]), ("end", text)):
                file(each).write_text(part)
                if kill_at == f"{each.number} {name} {when}":
                    os.kill(os.getpid(), signal.SIGKILL)

        def left(each: Round):
            return {"text": file(each).read_text()} if file(each).is_file() else None

        return Stage(name, do, left, kept=name in ("export", "eval"))

    return tuple(map(stage, range(len(NAMES))))


def walk(world: pathlib.Path, out: pathlib.Path, kill_at: str = "") -> int:
    """The signal that ended the child process that walked, 0 when it was done."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    config = world_config(world)
    config.arbiter.kind = f"{ArithmeticArbiter.__module__}:ArithmeticArbiter"
    done = run_rounds(config, out, rounds=ROUNDS, stages=stages(kill_at))
    os._exit(0 if done else 1)


def main(world: pathlib.Path, out: pathlib.Path) -> None:
    assert walk(world, out / "whole") == 0
    for number in range(1, ROUNDS + 1):
        for name in NAMES:
            for when in ("half", "end"):
                died = walk(world, out / "killed", f"{number} {name} {when}")
                assert died == -signal.SIGKILL, (number, name, when, died)
    assert walk(world, out / "killed") == 0


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
