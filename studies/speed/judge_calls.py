"""How close judging comes to calls x latency / concurrency, against a stub on this machine.

    python -m studies.speed.judge_calls [--calls=1000] [--latency=0.2] [--concurrency=64] [--runs=3]

The stub (tests/support/chat_stub.py) is a process of its own, so that its work is not ours. Every
case is judged by the arbiter `prompted` with the rubric reply_safety and written to a reply cache.
Prints a line a run and, last, one JSON object; exit code 1 when the best run takes more than 1.6
times the ideal.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.arbiter.verdict import Case, Verdict
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.data_pipelines.records import Record

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALLOWED = 1.6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.judge_calls")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of one call")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    ideal = args.calls * args.latency / args.concurrency
    seconds = []
    command = [sys.executable, "-m", "tests.support.chat_stub", str(args.latency)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as stub:
        assert stub.stdin and stub.stdout
        url = stub.stdout.readline().strip()
        for run in range(args.runs):
            seconds.append(one_run(url, args.calls, args.concurrency))
            print(f"run {run}: {seconds[-1]:.2f} s, {seconds[-1] / ideal:.2f} x {ideal:.2f} s")
        stub.stdin.close()
    ratio = min(seconds) / ideal
    print(json.dumps({**vars(args), "ideal": ideal, "seconds": seconds, "ratio": ratio}))
    return int(ratio > ALLOWED)


def one_run(url: str, calls: int, concurrency: int) -> float:
    """Seconds to judge so many cases, connecting and writing the replies included."""
    record = Record("q", (), "What is this?", ("A step.",), "A reply.")
    cases = [Case(record, ("Look.",), f"Reply {i}.", True) for i in range(calls)]
    settings = JudgeSettings(model="stub", base_url=url, concurrency=concurrency)
    with tempfile.TemporaryDirectory() as folder:
        judge = Prompted(settings, cache=ReplyCache(folder))
        start = time.perf_counter()
        judged = judge.judge(cases)
        seconds = time.perf_counter() - start
    assert all(found.reply == Verdict.SAFE for found in judged)
    return seconds


if __name__ == "__main__":
    raise SystemExit(main())
