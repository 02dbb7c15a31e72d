"""The measurement itself: variants of a question's step, timed in turns, and whether they agree."""

from __future__ import annotations

import dataclasses

import numpy as np

from studies.speed import timing, workload
from studies.speed.tree_vs_pairs.variants import Variant, build, program
from studies.speed.workload import Shape, Width

# Variants of one loss, and which of them the others are compared with, in order of preference.
SAME_LOSS = (("pairs", "unique", "tree", "tree-dense"), ("8-pairs", "8-tree"))


def compare(
    shape: Shape,
    width: Width,
    names: tuple[str, ...],
    *,
    repeat: int,
    remat: str,
    quick: bool = False,
    at_most: int = 0,
    say=lambda _: None,
) -> dict:
    """Everything that is measured in this process, as the JSON object of the last line.

    at_most: run only so many micro-batches of a variant; it then has times but no loss.
    """
    made, config, pairs = build(shape, width, names, remat=remat)
    params = workload.random_params(config)
    programs = [program(name, *made[name]) for name in names]
    whole = [p.name for p in programs if not 0 < at_most < len(p.pieces)]
    for one in programs:
        one.pieces = one.pieces[: at_most or None]
        say(f"compiling {one.name}")
        one.compile(params, quick)
    baseline = next((p for p in programs if p.name == "tree"), programs[0])
    times = timing.take_turns(programs, baseline, params, repeat, say)
    results = {p.name: p.result() for p in programs if p.name in whole}
    figures = {}
    for one in programs:
        variant: Variant = made[one.name][0]
        figures[one.name] = {
            "rows": variant.rows,
            "real_tokens": variant.real_tokens,
            "padded_tokens": variant.padded_tokens,
            **times[one.name],
            **one.memory,
        }
        if one.name in results:
            figures[one.name]["loss"] = results[one.name][0]
    for group in SAME_LOSS:
        present = [name for name in group if name in results]
        for name in present[1:]:
            (loss, grads), (loss0, grads0) = results[name], results[present[0]]
            figures[name]["compared_with"] = present[0]
            figures[name]["loss_difference"] = abs(loss - loss0)
            figures[name]["gradient_difference"] = float(
                np.linalg.norm(grads - grads0) / np.linalg.norm(grads0)
            )
    return {
        "benchmark": "tree_vs_pairs",
        "shape": dataclasses.asdict(shape),
        "width": dataclasses.asdict(width),
        "remat": remat,
        "pairs": pairs,
        "baseline": baseline.name,
        "variants": figures,
        **timing.machine(),
    }
