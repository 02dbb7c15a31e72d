"""Other shapes than the default one: exact token counts of every variant, and a few step times.

Called by `python -m studies.speed.tree_vs_pairs --sweep`; draws docs/figures/tree_vs_pairs.svg.
Counts are means over questions, since verdicts and lengths are random. Times are those of a
narrower model (d 256, 4 layers), on which attention weighs more than on a large one.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

from srpo_jax.errors import UserError
from srpo_jax.pack.packing import Budgets
from srpo_jax.pack.tree_layout import choose_pairs, layout_tree
from studies.speed import timing, workload
from studies.speed.tree_vs_pairs import svg
from studies.speed.tree_vs_pairs.compare import compare
from studies.speed.tree_vs_pairs.variants import count_tokens, pair_groups, unique_groups
from studies.speed.workload import Shape, Width

FIGURE = pathlib.Path(__file__).parents[3] / "docs" / "figures" / "tree_vs_pairs.svg"
NAMES = ("pairs", "unique", "8-pairs")
LABELS = ("all pairs", "unique sequences", "8 random pairs")
QUESTIONS = 8
NARROW = Width(hidden=256, layers=4, heads=4, kv_heads=2, ffn=768, **workload.SMALL_TOWER)
# axis: (title, [(label, options of Shape, whether it is timed)]); the default shape is in each.
AXES = {
    "branches": (
        "branches per prefix, K",
        [
            ("2", dict(branches=2), False),
            ("4", dict(branches=4), True),
            ("8", {}, False),
            ("12", dict(branches=12), False),
            ("16", dict(branches=16), False),
        ],
    ),
    "steps": (
        "steps, S",
        [
            ("2", dict(steps=2), False),
            ("4", dict(steps=4), True),
            ("6", {}, False),
            ("8", dict(steps=8), False),
            ("12", dict(steps=12), False),
        ],
    ),
    "image": (
        "image tokens",
        [
            ("0", dict(image_tokens=0), True),
            ("64", dict(image_tokens=64), False),
            ("256", {}, True),
            ("1024", dict(image_tokens=1024), False),
            ("2560", dict(image_tokens=2560), False),
        ],
    ),
    "length": (
        "branch tokens, first to last prefix",
        [
            ("50-20", dict(first=50, last=20), False),
            ("100-30", dict(first=100, last=30), False),
            ("200-40", {}, False),
            ("400-80", dict(first=400, last=80), False),
            ("800-160", dict(first=800, last=160), False),
        ],
    ),
}


def count(shape: Shape, width: Width) -> dict[str, float]:
    """Padded tokens of every variant as a multiple of the tree's; means over questions."""
    config = workload.model_config(width)
    sums = dict.fromkeys(("num_pairs", "tree_tokens", "tree", *NAMES), 0)
    for seed in range(QUESTIONS):
        tree = workload.random_question(shape, config, seed, pixels=False)
        pairs = choose_pairs(tree)
        layout = layout_tree(tree, pairs).sizes
        sums["num_pairs"] += len(pairs)
        sums["tree_tokens"] += layout.tokens
        sums["tree"] += Budgets.fit([layout]).tokens
        eight = choose_pairs(tree, pairing="rpo_code", max_pairs=8)
        for name, groups in (
            ("pairs", pair_groups(tree, pairs)),
            ("unique", unique_groups(tree, pairs)),
            ("8-pairs", pair_groups(tree, eight)),
        ):
            sums[name] += count_tokens(groups)[1]
    means = {name: round(sums[name] / QUESTIONS, 1) for name in ("num_pairs", "tree_tokens")}
    return means | {name: round(sums[name] / sums["tree"], 2) for name in NAMES}


def clock(shape: Shape, width: Width, quick: bool) -> dict:
    """Measured ratios of CPU and wall seconds, and how well losses and gradients agree."""
    result = compare(
        shape, width, ("tree", "pairs", "unique"), repeat=2, remat="full", quick=quick
    )["variants"]
    out = {
        name: {key: result[name][key] for key in ("wall_ratio", "cpu_ratio")}
        for name in ("pairs", "unique")
    }
    return out | {
        "gradient_difference": result["tree"]["gradient_difference"],
        "loss_difference": result["tree"]["loss_difference"],
    }


def run(*, quick: bool, only: str, times: str) -> dict:
    """only: names of timed points ("image=0,steps=4"), "none", or empty for all of them.
    times: a JSON file that timed points are read from and added to, so that they can be measured
    one by one."""
    base, width = (
        (workload.QUICK, dataclasses.replace(workload.QUICK_WIDTH, **workload.SMALL_TOWER))
        if quick
        else (Shape(), NARROW)
    )
    wanted = None if not only else set(only.split(","))
    store = pathlib.Path(times) if times else None
    timed = json.loads(store.read_text()) if store and store.exists() else {}
    known = {f"{axis}={label}" for axis, (_, points) in AXES.items() for label, _, _ in points}
    if wanted and wanted - known - {"none"}:
        raise UserError(f"no point {sorted(wanted - known)[0]!r}; there are {sorted(known)}")
    counts: dict[str, dict] = {}
    for axis, (_, points) in AXES.items():
        for label, options, is_timed in points[:2] if quick else points:
            name = f"{axis}={label}"
            shape = dataclasses.replace(base, **options) if not quick else base
            counts[name] = count(shape, width)
            if (is_timed and not quick) if wanted is None else name in wanted:
                print(f"timing {name}", file=sys.stderr, flush=True)
                timed[name] = clock(shape, width, quick)
                if store:
                    store.write_text(json.dumps(timed, indent=1) + "\n")
    print(report(counts, timed))
    if not quick:
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        FIGURE.write_text(draw(counts, timed), encoding="utf-8")
        print(f"\nwrote {FIGURE}")
    return {
        "benchmark": "tree_vs_pairs_sweep",
        "shape": dataclasses.asdict(base),
        "width": dataclasses.asdict(width),
        "questions": QUESTIONS,
        "counts": counts,
        "timed": timed,
        **timing.machine(),
    }


def report(counts: dict[str, dict], timed: dict[str, dict]) -> str:
    """The figures as a table."""
    head = [
        "point",
        "pairs",
        "tree tokens",
        *(f"x tokens, {n}" for n in NAMES),
        "x CPU s, pairs",
        "x CPU s, unique",
    ]

    def spread(name: str, variant: str) -> str:
        if name not in timed:
            return "-"
        low, middle, high = timed[name][variant]["cpu_ratio"]
        return f"{middle} ({low}-{high})"

    rows = [
        [
            name,
            c["num_pairs"],
            c["tree_tokens"],
            *(c[n] for n in NAMES),
            spread(name, "pairs"),
            spread(name, "unique"),
        ]
        for name, c in counts.items()
    ]
    return timing.table(head, rows)


def draw(counts: dict[str, dict], timed: dict[str, dict]) -> str:
    """One panel per axis: lines are token counts, dots measured CPU seconds."""
    panels = []
    for axis, (title, points) in AXES.items():
        names = [f"{axis}={label}" for label, _, _ in points]
        lines = [[counts[name][series] for name in names] for series in NAMES]
        marks = [
            (s, k, timed[name][series]["cpu_ratio"][1])
            for k, name in enumerate(names)
            if name in timed
            for s, series in enumerate(("pairs", "unique"))
        ]
        panels.append(svg.Panel(title, [label for label, _, _ in points], lines, marks))
    return svg.figure(panels, LABELS, about="tokens, x the tree's", mark="measured CPU time")
