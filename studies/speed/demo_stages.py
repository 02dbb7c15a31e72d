"""How long the demo's exploration and evaluation take, beside another commit of this repository.

    python -m studies.speed.demo_stages --before=COMMIT [--runs=2] [--questions=0]

`srpo explore` and `srpo eval` on the embedded world, each a process with its imports and its
compilations, as the demo runs them, in both checkouts by turns and in fresh workdirs. --questions:
explore so many instead of the demo's. Prints a line a process, a table of the medians (wall seconds
and CPU seconds), and last one JSON object with how many times as long the other commit takes.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from studies.speed.sampling.__main__ import ROOT, checkout
from studies.speed.timing import finish, machine, run, table

STAGES = {"explore": [], "eval": ["--name=before"]}
Times = tuple[float, float]  # wall and CPU seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.demo_stages")
    parser.add_argument("--before", required=True, help="a commit")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--questions", type=int, default=0, help="of explore; 0: the demo's")
    args = parser.parse_args()
    options = [f"--config.explore.num_questions={args.questions}"] if args.questions else []
    found: dict[tuple[str, str], list[Times]] = {}
    with checkout(args.before) as other:
        for turn in range(args.runs):
            for name, tree in (("now", ROOT), ("before", other)):
                with tempfile.TemporaryDirectory() as workdir:
                    for stage, own in STAGES.items():
                        told = in_process(tree, stage, workdir, [*own, *options])
                        found.setdefault((stage, name), []).append(told)
                        line = f"run {turn}: {stage} {name}: {told[0]:.1f} s, {told[1]:.1f} CPU s"
                        print(line, flush=True)
    middle = {key: tuple(map(statistics.median, zip(*all_))) for key, all_ in found.items()}
    print(
        table(("stage", "commit", "seconds", "CPU seconds"), [(*k, *v) for k, v in middle.items()])
    )
    times = {
        stage: [b / n for b, n in zip(middle[stage, "before"], middle[stage, "now"])]
        for stage in STAGES
    }
    finish({"times_seconds_and_cpu": times, "machine": machine()})
    return 0


def in_process(tree: pathlib.Path, stage: str, workdir: str, options: list[str]) -> Times:
    """What the command takes in a checkout."""
    command = [sys.executable, "-m", "srpo_jax", stage, "--config=configs/ssui_mini.py"]
    code, spent = run(
        [*command, f"--workdir={workdir}", *options],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if code:
        raise SystemExit(f"{stage} ended with status {code} in {tree}")
    return spent.seconds, spent.cpu_seconds


if __name__ == "__main__":
    sys.exit(main())
