"""How fast branches are sampled, beside transformers and a bare loop of torch, in one run.

    python -m studies.speed.sampling [--before=COMMIT] [--runs=3] [--questions=4] [--quick]
        [--only=generate,reused,loop]

One random Qwen2.5-VL (width 512, 4 layers, vocabulary 16k), questions with a picture of 256 tokens
and a path of six steps of 40 tokens, eight branches after each of the six prefixes, at temperature
1. So many ids end a branch that the mean length is about a third of the maximum. The ways, each a
process of its own (in_jax.py, in_torch.py):

    engine      ours
    before      the sampler of another commit of this repository, checked out beside it
    generate    transformers' generate(), all branches of a question in one batch
    reused      generate() once for each prefix, on a copy of the cache of one prefill
    loop        one prefill, its cache expanded to all branches and masked, a loop of torch

They take turns; CPU seconds of a useful token are compared, as the machine may be busy. Prints a
line a call and, last, one JSON object: the medians, and how many times as long each way takes as
the engine. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[3]
HERE = pathlib.Path(__file__).resolve().parent
TORCH = ("generate", "reused", "loop")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.sampling")
    parser.add_argument("--before", default="", help="a commit whose sampler is measured too")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="a tiny model, for tests")
    parser.add_argument("--only", default=",".join(TORCH), help="the ways beside the engine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        setting = {"folder": folder, "questions": args.questions, "quick": args.quick}
        script = str(HERE / "in_torch.py")
        subprocess.run([sys.executable, script, str(ROOT), json.dumps(setting)], check=True)
        ways = {"engine": _start(stack, "in_jax.py", ROOT, setting)}
        if args.before:
            tree = stack.enter_context(checkout(args.before))
            ways["before"] = _start(stack, "in_jax.py", tree, setting)
        for name in [way for way in TORCH if way in args.only.split(",")]:
            ways[name] = _start(stack, "in_torch.py", ROOT, {**setting, "way": name})
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for run in range(args.runs):
            for name, way in ways.items():
                found[name].append(told := _turn(way))
                print(f"run {run}: {name}: {_line(told)}", flush=True)
    print(json.dumps(summary(found), indent=1))
    return 0


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per way the medians of its calls, with `times`: its CPU seconds a token over the engine's."""
    per_token = {
        name: statistics.median(call["cpu"] / call["tokens"] for call in calls)
        for name, calls in found.items()
    }
    return {
        name: {
            "cpu_seconds": statistics.median(call["cpu"] for call in calls),
            "tokens": statistics.median(call["tokens"] for call in calls),
            "slots_in_use": statistics.median(call.get("slots_in_use", -1) for call in calls),
            "times": per_token[name] / per_token["engine"],
        }
        for name, calls in found.items()
    }


def _line(told: dict[str, float]) -> str:
    used = f", slots in use {told['slots_in_use']:.0%}" if "slots_in_use" in told else ""
    mean = told["tokens"] / told["branches"]
    return f"{told['cpu']:.1f} CPU seconds, {told['tokens']} tokens, {mean:.1f} a branch{used}"


def _start(
    stack: contextlib.ExitStack, script: str, tree: pathlib.Path, setting: dict
) -> subprocess.Popen:
    """A process with one way, warm: it has made all once and compiled what it needs."""
    way = subprocess.Popen(
        [sys.executable, str(HERE / script), str(tree), json.dumps(setting)],
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(_end, way)
    _answer(way)
    return way


def _turn(way: subprocess.Popen) -> dict[str, float]:
    """One measured call of a way."""
    assert way.stdin is not None
    way.stdin.write("go\n")
    way.stdin.flush()
    return _answer(way)


def _answer(way: subprocess.Popen) -> dict[str, float]:
    assert way.stdout is not None
    for line in way.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"{str(way.args)[:200]}: ended with code {way.wait()}")


def _end(way: subprocess.Popen) -> None:
    assert way.stdin is not None
    way.stdin.close()
    way.wait()


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


if __name__ == "__main__":
    sys.exit(main())
