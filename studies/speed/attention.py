"""Tree attention by blocks against the plain one: value and gradients, on this machine's devices.

    python -m studies.speed.attention [--repeat 5] [--cases short,six_steps] [--impl block]

A row is one question: picture and prompt, S steps of a reference path, and K branches after each
prefix of it, as in training. Runs of the two implementations take turns, so that other work on the
machine hurts both; the least time of each counts. Last line: JSON, ratios plain/other.
"""

from __future__ import annotations

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models.attention.dispatch import IMPLEMENTATIONS, tree_attention

# name: tokens of picture and prompt, steps S, tokens of a step, K, tokens of a branch after the
# first and after the last prefix
CASES = {
    "tiny": (64, 2, 16, 1, (80, 60)),
    "small": (96, 3, 24, 2, (80, 40)),
    "short": (128, 4, 32, 3, (90, 30)),
    "one_picture": (320, 6, 40, 2, (160, 40)),
    "six_steps": (320, 6, 40, 8, (200, 40)),
    "large_picture": (1088, 6, 40, 8, (200, 40)),
    "causal": (2048, 0, 0, 0, (0, 0)),  # no branches: half of all scores are needed
}
HEADS, KV_HEADS, SIZE = 8, 2, 64


def question(
    prompt: int, steps: int, step: int, branches: int, lengths: tuple[int, int]
) -> np.ndarray:
    """subtree_end int32 [T] of one tree, the reference path first and then the branches of the
    longest prefix, the next one, ...; the branches of a prefix vary by up to 20 % in length."""
    rng = np.random.default_rng(0)
    leaves: list[int] = []
    trunk = prompt + steps * step
    end_of_prefix = {steps: trunk}  # where what hangs below the first i steps ends
    for i in reversed(range(steps)):
        mean = np.interp(i, (0, max(steps - 1, 1)), lengths)
        for length in (mean * rng.uniform(0.8, 1.2, branches)).astype(int):
            leaves += [trunk + len(leaves) + length] * length
        end_of_prefix[i] = trunk + len(leaves)
    path = [end_of_prefix[0]] * prompt
    for i in range(steps):
        path += [end_of_prefix[i + 1]] * step
    return np.asarray(path + leaves, np.int32)


def least_times(programs: dict, arrays: tuple, repeat: int) -> dict[str, float]:
    """Seconds of each program, the least of `repeat` runs, taking turns."""
    times = {name: [] for name in programs}
    for run in range(repeat + 1):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            if run:  # the first one compiles
                times[name].append(time.perf_counter() - begin)
    return {name: min(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--impl", default="block", choices=IMPLEMENTATIONS)
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, float32, {HEADS}/{KV_HEADS} heads x {SIZE}")
    print(f"| row | T | scores needed, % of T^2 | xla ms | {options.impl} ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    ratios = {}
    for case in options.cases.split(","):
        ends = question(*CASES[case])
        length = len(ends)
        rng = np.random.default_rng(1)
        shapes = [(1, length, n, SIZE) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
        arrays = [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]

        def step(q, k, v, grad, ends, impl):
            attend = functools.partial(tree_attention, subtree_end=ends, impl=impl)
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(grad)

        programs = {
            impl: jax.jit(functools.partial(step, impl=impl)) for impl in ("xla", options.impl)
        }
        seconds = least_times(programs, (*arrays, jnp.asarray(ends[None])), options.repeat)
        plain, other = seconds["xla"], seconds[options.impl]
        needed = np.sum(ends - np.arange(length)) / length**2
        ratios[case] = round(plain / other, 2)
        print(
            f"| {case} | {length} | {100 * needed:.0f} | {1e3 * plain:.1f} | {1e3 * other:.1f} "
            f"| {plain / other:.2f} |",
            flush=True,
        )
    print(json.dumps({"impl": options.impl, "platform": jax.default_backend(), "ratios": ratios}))


if __name__ == "__main__":
    main()
