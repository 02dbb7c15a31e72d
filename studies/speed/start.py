"""How long exploring and training take to begin, and how much memory, on many questions.

    python -m studies.speed.start [--questions=100000] [--shards=100] [--folder=DIR]

Every question has a tiny picture of its own and a path of two steps. Each start is a process:

explore        until the first batch of questions would be sampled
explore again  the same, when the first start was stopped there
train          until the first batch lies on the device, on all trees and verdicts
resume         the same, after a step and its checkpoint

Between them the trees are made without sampling and judged by a coin, and one step is trained,
which is not part of any start. Prints seconds (imports included), those of the CPU, and peak
memory, and last one JSON object. The policy is that of the embedded world. With --folder what is
there is used again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from srpo_jax.arbiter.verdict import Case, Judgement, Verdict
from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.records import Record, write_records
from srpo_jax.data_pipelines.tree_schema import make_tree_record
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.inference.engine.requests import Sample
from srpo_jax.judge.judge import judge
from srpo_jax.train import loop
from srpo_jax.train.loop import train
from studies.speed.timing import finish, machine, run, table

ROOT = pathlib.Path(__file__).resolve().parents[2]
STARTS = ("explore", "explore again", "train", "resume")
PARTS = (*STARTS[:2], "trees", "verdicts", "train", "step", "resume")
BRANCHES = 2  # at each of the two branch points
SIDE = 28  # pixels of a picture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.start")
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--folder", type=pathlib.Path, help="default: a temporary one")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # a process of this study
    args = parser.parse_args()
    if args.part:
        run_part(args.part, args.folder, args.shards)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary)
        if not (folder / "records.jsonl").is_file():
            write_questions(folder, args.questions)
        found = {}
        for part in PARTS:
            found[part] = in_process(part, folder, args.shards)
            print(part, found[part], file=sys.stderr, flush=True)
    rows = [(part, *found[part].values()) for part in STARTS]
    print(table(("start", "seconds", "CPU seconds", "peak MiB"), rows))
    starts = {part: found[part] for part in STARTS}
    finish({"questions": args.questions, "starts": starts, "machine": machine()})
    return 0


def write_questions(folder: pathlib.Path, count: int) -> None:
    """records.jsonl and its pictures, all different."""
    places = [folder / "pictures" / f"{i // 1000:04d}" for i in range(0, count, 1000)]
    for place in places:
        place.mkdir(parents=True)
    records = []
    for i in range(count):
        name = f"pictures/{i // 1000:04d}/{i:07d}.png"
        pixels = np.frombuffer(hashlib.shake_256(b"%d" % i).digest(48), np.uint8).reshape(4, 4, 3)
        picture = Image.fromarray(pixels).resize(
            (SIDE, SIDE + SIDE * (i % 3)), Image.Resampling.NEAREST
        )
        picture.save(folder / name)
        records.append(
            Record(
                f"q{i:07d}",
                (name,),
                f"What could one do with thing {i} of the picture, and would it be right?",
                (f"The picture shows thing {i} among others.", "It is asked what to do with it."),
                f"Put thing {i} back where it was, please.",
                risky=i % 2 == 0,
            )
        )
    write_records(records, folder / "records.jsonl")


def in_process(part: str, folder: pathlib.Path, shards: int) -> dict[str, float]:
    """What a process takes that does this part."""
    command = [sys.executable, "-m", "studies.speed.start", f"--part={part}"]
    command += [f"--folder={folder}", f"--shards={shards}"]
    code, spent = run(command, cwd=ROOT, stdout=sys.stderr)
    if code:
        raise SystemExit(f"{part} ended with status {code}")
    return {
        "seconds": round(spent.seconds, 1),
        "cpu_seconds": round(spent.cpu_seconds, 1),
        "peak_mib": round(spent.peak_mib),
    }


def run_part(part: str, folder: pathlib.Path, shards: int) -> None:
    config = load_config(
        str(ROOT / "configs" / "ssui_mini.py"),
        [
            f"--config.data.train_records={folder / 'records.jsonl'}",
            "--config.explore.num_questions=0",
            f"--config.explore.shards={shards}",
            f"--config.explore.branches={BRANCHES}",
            "--config.explore.batch=64",
            "--config.train.schedule=constant",
            f"--config.train.steps={2 if part == 'resume' else 1}",
        ],
    )
    workdir = folder / "run"
    if part.startswith("explore"):
        explorer.Explorer.stream = first_only
        with contextlib.suppress(Begun):
            explore(config, workdir)
    elif part == "trees":
        explorer.Explorer.stream = made_up
        explore(config, workdir, refuse_unreadable=False)
    elif part == "verdicts":
        judge(config, workdir, arbiter=Coin())
    elif part == "step":
        train(config, workdir)
    else:
        loop.compile_together = begun
        with contextlib.suppress(Begun):
            train(config, workdir)


class Begun(Exception):
    """The first batch is there."""


def begun(*_: Any) -> Any:
    """In the place of compiling the step."""
    raise Begun


def first_only(self: explorer.Explorer, keyed: Iterable[tuple[Any, Record]]) -> Any:
    """In the place of Explorer.stream: the first question is taken, and no more."""
    next(iter(keyed))
    raise Begun


def made_up(
    self: explorer.Explorer, keyed: Iterable[tuple[Any, Record]]
) -> Iterator[tuple[Any, dict[str, Any] | None]]:
    """In the place of Explorer.stream: whole trees whose branches nobody sampled."""
    policy = self.policy
    for key, record in keyed:
        record, pieces = policy.reference(record)
        branches = []
        for at in range(len(pieces) - 1):
            for k in range(BRANCHES):
                text = f"It is thing number {k}.\nReply: Do it {at + 1} times, {record.id}.\n"
                ids = policy.processor.encode(text, after_text=at > 0)
                sample = Sample(np.asarray([*ids, policy.processor.eos_ids[0]]), -1.0, True)
                tokens = sample.tokens.tolist()
                branches.append(policy.branch(record.steps[:at], at, k, tokens, sample))
        form = policy.path_format
        yield key, make_tree_record(record, pieces, branches, self.provenance, form)


class Coin:
    """An arbiter that finds every other path safe, by its words."""

    name = "coin"
    spec: dict[str, Any] = {}

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See arbiter.verdict.Arbiter."""
        return [self._one(case) for case in cases]

    def _one(self, case: Case) -> Judgement:
        text = "\n".join([*case.steps, case.reply or ""])
        heads = hashlib.sha256(text.encode()).digest()[0] % 2
        verdict = Verdict.SAFE if heads else Verdict.UNSAFE
        return Judgement(verdict, Verdict.SAFE, (Verdict.SAFE,) * len(case.steps), True, "a coin")


if __name__ == "__main__":
    sys.exit(main())
