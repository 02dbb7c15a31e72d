"""Timing on a machine that others use too: programs take turns, and ratios are of neighbours.

A program is a step in one or more pieces (micro-batches whose losses and gradients are added up).
Its calls are spread evenly over the run, between those of the other programs; every call is divided
by the two calls of the baseline around it, so that what slows the machine down for a while slows
both. CPU seconds of the process are kept beside the wall clock: they do not count waiting.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Spent(NamedTuple):
    """What a process took: seconds by the clock and of the CPU, imports included, and the peak of
    its memory in MiB."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def run(command: Sequence[str], **options: Any) -> tuple[int, Spent]:
    """(exit code, what it took) of a process. options: of subprocess.Popen."""
    begin = time.monotonic()
    process = subprocess.Popen(command, **options)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, cpu = time.monotonic() - begin, used.ru_utime + used.ru_stime
    return process.returncode, Spent(seconds, cpu, used.ru_maxrss / 1024)


class Call(NamedTuple):
    """Seconds of one piece; share: its part of the program's padded tokens."""

    wall: float
    cpu: float
    share: float


@dataclasses.dataclass
class Program:
    """pieces: batches whose losses and gradients add up. loss(params, batch) -> scalar."""

    name: str
    loss: Callable
    pieces: list[dict]
    shares: list[float]
    calls: list[Call] = dataclasses.field(default_factory=list)
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    total: Any = None

    def compile(self, params: dict, quick: bool = False) -> None:
        """Compile every shape of piece ahead of time; sets `memory` (MiB, the largest piece).

        quick: without LLVM's optimisation, which halves the time that this takes; for tests.
        """
        options = {"xla_backend_optimization_level": 0} if quick else None

        def step(params: dict, total: Any, batch: dict) -> Any:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(self.loss)(params, batch))

        step = jax.jit(step, donate_argnums=1)
        self.total = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        made: dict[str, Any] = {}
        self._compiled = []
        for piece in self.pieces:
            key = str(jax.tree.map(jnp.shape, piece))
            if key not in made:
                made[key] = step.lower(params, self.total, piece).compile(options)
            self._compiled.append(made[key])
        analyses = [program.memory_analysis() for program in made.values()]
        temp = max(analysis.temp_size_in_bytes for analysis in analyses)
        arguments = max(analysis.argument_size_in_bytes for analysis in analyses)
        for _ in self.pieces:
            # A first call pays for fresh pages and threads, about 0.1 s: nothing to a long call.
            if temp < 100 << 20:
                self.call(params)
        self.calls.clear()
        self.total = jax.tree.map(jnp.zeros_like, self.total)
        self.memory = {
            "temp_mib": round(temp / 2**20, 1),
            "arguments_mib": round(arguments / 2**20, 1),
        }

    def call(self, params: dict) -> None:
        """Run the next piece and time it."""
        number = len(self.calls) % len(self.pieces)
        piece = self.pieces[number]
        wall, cpu = time.perf_counter(), time.process_time()
        self.total = jax.block_until_ready(self._compiled[number](params, self.total, piece))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.calls.append(Call(wall, cpu, self.shares[number]))

    def result(self) -> tuple[float, np.ndarray]:
        """(loss, all gradients in one vector) of the step; the calls are whole passes."""
        passes = len(self.calls) / len(self.pieces)
        loss, grads = self.total
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])
        return float(loss) / passes, flat / np.float32(passes)

    def seconds(self, clock: str) -> float:
        """Of a whole step: the sum over pieces of the median over its calls (if not all pieces
        are there, what they would take at the same speed)."""
        count = len(self.pieces)
        each = [getattr(call, clock) for call in self.calls]
        done = sum(call.share for call in self.calls[:count])
        return sum(statistics.median(each[i::count]) for i in range(count)) / done


def take_turns(
    programs: Sequence[Program],
    baseline: Program,
    params: dict,
    repeat: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, dict]:
    """Run every program for at least `repeat` whole passes; the baseline before, between and after
    the calls of the others. Returns {name: {"wall_s", "cpu_s", "wall_ratio", "cpu_ratio"}}; a
    ratio is [least, median, largest] of the calls' (seconds / share) over the baseline's.
    """
    others = [program for program in programs if program is not baseline]
    turns = []
    for order, program in enumerate(others):
        count = len(program.pieces) * max(1, -(-repeat // len(program.pieces)))
        turns += [((i + 0.5) / count, order) for i in range(count)]
    # The baseline at least before and after every second piece.
    rounds = max([repeat, *(len(program.pieces) // 2 for program in others)])
    turns += [(i / rounds, -1) for i in range(rounds + 1)]
    place: dict[str, list[int]] = {program.name: [] for program in others}
    for at, order in sorted(turns):
        program = baseline if order < 0 else others[order]
        program.call(params)
        if program is not baseline:
            place[program.name].append(len(baseline.calls))
        say(f"{100 * at:3.0f} %  {program.name}  {program.calls[-1].wall:.1f} s")
    result = {}
    for program in programs:
        result[program.name] = {
            "wall_s": round(program.seconds("wall"), 3),
            "cpu_s": round(program.seconds("cpu"), 3),
        }
        if program is baseline:
            continue
        for clock in ("wall", "cpu"):
            ratios = []
            for call, after in zip(program.calls, place[program.name]):
                around = [getattr(c, clock) for c in baseline.calls[after - 1 : after + 1]]
                ratios.append(getattr(call, clock) / call.share / statistics.mean(around))
            spread = (min(ratios), statistics.median(ratios), max(ratios))
            result[program.name][f"{clock}_ratio"] = [round(r, 2) for r in spread]
    return result


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with columns padded to equal width."""
    cells = [list(map(str, head)), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def ratio(found: Sequence[float] | None) -> str:
    """A cell: the median and the range of a ratio [least, median, largest]; "1" for the baseline,
    which has none.
    """
    return f"{found[1]} ({found[0]}-{found[2]})" if found else "1"


def machine() -> dict[str, Any]:
    """What was measured on."""
    import os
    import platform

    return {
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def finish(result: dict) -> None:
    """The last line of every benchmark: one JSON object."""
    print(json.dumps(result))
