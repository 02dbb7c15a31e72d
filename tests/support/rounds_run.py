"""Rounds that are killed in the middle and at the end of each stage; see cli/test_run.py.

    python -m tests.support.rounds_run real|stand-in CONFIG OUT

OUT/whole is never stopped; in OUT/killed a child process dies by SIGKILL at every such moment, one
after another. A stand-in of a stage writes OUT/round-R/NAME.txt, a digest of the round's seed, of
its policy and of what the stage before left, and its name into OUT/done.txt. Of real stages only
the engine is one: it recites.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable

from srpo_jax.cli.rounds.stages import STAGES, Round, Stage
from srpo_jax.cli.rounds.walk import run_rounds
from srpo_jax.config.load import load_config
from srpo_jax.evaluate import evaluate as evaluation
from srpo_jax.explore import explorer
from tests.support.small_world import RecitingEngine

NAMES = ("explore", "judge", "train", "export", "eval")
ROUNDS = 2
SECONDS = 0.3  # that a real stage lives
MakeStages = Callable[[str], tuple[Stage, ...]]  # of "ROUND STAGE half" or "ROUND STAGE end"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def real(kill_at: str) -> tuple[Stage, ...]:
    """The stages of a round; the process dies soon after one has begun, or when it has ended."""

    def do(stage: Stage, each: Round) -> None:
        if kill_at == f"{each.number} {stage.name} half":
            threading.Timer(SECONDS, die).start()
        stage.do(each)
        if kill_at.startswith(f"{each.number} {stage.name} "):
            die()

    return tuple(stage._replace(do=functools.partial(do, stage)) for stage in STAGES)


def stand_in(kill_at: str) -> tuple[Stage, ...]:
    """Stages that write a line."""

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
                    die()

        def left(each: Round):
            return {"text": file(each).read_text()} if file(each).is_file() else None

        return Stage(name, do, left, kept=name in ("export", "eval"))

    return tuple(map(stage, range(len(NAMES))))


def walk(config: str, out: pathlib.Path, stages: tuple[Stage, ...]) -> int:
    """How the child process that walked has ended: 0, or minus a signal."""
    child = os.fork()  # before jax has threads
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = run_rounds(load_config(config), out, rounds=ROUNDS, stages=stages)
    os._exit(0 if done else 1)


def main(make: MakeStages, config: str, out: pathlib.Path) -> None:
    assert walk(config, out / "whole", make("")) == 0
    for number in range(1, ROUNDS + 1):
        for name in NAMES:
            for when in ("half", "end"):
                moment = f"{number} {name} {when}"
                assert walk(config, out / "killed", make(moment)) == -signal.SIGKILL, moment
    assert walk(config, out / "killed", make("")) == 0


if __name__ == "__main__":
    explorer.Engine = evaluation.Engine = RecitingEngine  # pyright: ignore
    main(real if sys.argv[1] == "real" else stand_in, sys.argv[2], pathlib.Path(sys.argv[3]))
