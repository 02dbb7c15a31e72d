"""One step over a question: its tree in one row, against pairwise rows. Same loss, same gradients.

    python -m studies.speed.tree_vs_pairs [--quick] [--only tree,pairs] [--rss] [--sweep]

The variants (variants.py), all through srpo_jax.train.losses.objective, value and gradient of every parameter:
  tree        the tree in one packed row, attention by blocks
  tree-dense  the same, attention over all scores (only with --only)
  pairs       every safe x unsafe pair as two rows, micro-batches of 8 pairs, gradients added up
  unique      every distinct sequence as a row of its own
  8-pairs     8 random pairs (RPO's code: max_group_size) as rows; another loss, of fewer pairs
  8-tree      the same 8 pairs as a tree
Rows get attention "auto", as in training, and only target tokens are projected to the vocabulary in
every variant. Pictures pass the real vision tower, once per row. By default it is so small (one
block over 256 patches) that the figures are those of the decoder; --tower scaled gives it the share
of the weights that it has in Qwen2.5-VL-7B, which favours the tree.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.attention.dispatch import Attend
from srpo_jax.models.policy_model import PolicyModel
from srpo_jax.pack.tree_layout import choose_pairs
from srpo_jax.train.losses.objective import Objective
from studies.speed import timing as measure
from studies.speed import workload
from studies.speed.tree_vs_pairs.variants import (
    PAIRS,
    Variant,
    as_arrays,
    make_loss,
    pair_groups,
    rows_variant,
    tree_variant,
    unique_groups,
)
from studies.speed.workload import Shape, Width

SEED = 1  # gives the default shape 80 pairs: 10 whole micro-batches (the mean over seeds is 87)
ALL = ("tree", "pairs", "unique", "8-pairs", "8-tree")
# Variants of one loss, and which of them the others are compared with, in order of preference.
SAME_LOSS = (("pairs", "unique", "tree", "tree-dense"), ("8-pairs", "8-tree"))


def build(
    shape: Shape, width: Width, names: tuple[str, ...], *, seed: int = SEED, remat: str = "full"
):
    """({name: (Variant, loss function)}, ModelConfig, number of pairs)."""
    config = workload.model_config(width)
    tree = workload.random_question(shape, config, seed)
    pairs = choose_pairs(tree)
    eight = choose_pairs(tree, pairing="rpo_code", max_pairs=8)
    makers = {
        "tree": lambda: tree_variant([tree], [pairs]),
        "tree-dense": lambda: tree_variant([tree], [pairs]),
        "pairs": lambda: rows_variant(pair_groups(tree, pairs), 2 * PAIRS + 1),
        "unique": lambda: rows_variant(unique_groups(tree, pairs), 8),
        "8-pairs": lambda: rows_variant(pair_groups(tree, eight), 2 * PAIRS + 1),
        "8-tree": lambda: tree_variant([tree], [eight]),
    }
    impl = {"tree": "block", "8-tree": "block", "tree-dense": "xla"}
    made = {}
    for name in names:
        if name not in makers:
            raise UserError(f"no variant {name!r}; there are {', '.join(makers)}")
        model = PolicyModel(config, remat=remat, attend=Attend(impl.get(name, "auto")))
        made[name] = (makers[name](), make_loss(model, Objective()))
    return made, config, len(pairs)


def program(name: str, variant: Variant, loss) -> measure.Program:
    sizes = [np.size(batch["inputs"]["tokens"]) for batch in variant.batches]
    shares = [size / sum(sizes) for size in sizes]
    return measure.Program(name, loss, [as_arrays(b) for b in variant.batches], shares)


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
    times = measure.take_turns(programs, baseline, params, repeat, say)
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
        **measure.machine(),
    }


def peak_rss(name: str, shape: Shape, width: Width, remat: str) -> float:
    """MiB at most resident while this process runs the first piece of a variant, twice."""
    made, config, _ = build(shape, width, (name,), remat=remat)
    params = workload.random_params(config)
    one = program(name, *made[name])
    one.compile(params)
    for _ in range(2):
        one.call(params)
        one.calls.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def add_rss(result: dict, argv: list[str]) -> None:
    """Measure every variant in a process of its own; adds "peak_rss_mib"."""
    for name, figures in result["variants"].items():
        command = [sys.executable, "-m", "studies.speed.tree_vs_pairs", *argv, "--probe", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures["peak_rss_mib"] = json.loads(done.stdout.splitlines()[-1])["peak_rss_mib"]


def report(result: dict) -> str:
    """The figures as a table."""
    head = [
        "variant",
        "rows",
        "tokens",
        "padded",
        "step s",
        "CPU s",
        "x wall",
        "x CPU",
        "MiB temp",
        "loss",
        "d loss",
        "d grad",
    ]
    if any("peak_rss_mib" in f for f in result["variants"].values()):
        head.append("MiB RSS")

    def ratio(found: list[float] | None) -> str:
        return f"{found[1]} ({found[0]}-{found[2]})" if found else "1"

    rows = []
    for name, f in result["variants"].items():
        difference = [
            f"{f[key]:.1e}" if key in f else "-"
            for key in ("loss_difference", "gradient_difference")
        ]
        rows.append(
            [
                name,
                f["rows"],
                f["real_tokens"],
                f["padded_tokens"],
                f["wall_s"],
                f["cpu_s"],
                ratio(f.get("wall_ratio")),
                ratio(f.get("cpu_ratio")),
                f["temp_mib"],
                f"{f['loss']:.6f}" if "loss" in f else "-",
                *difference,
            ]
        )
        if len(head) > 12:
            rows[-1].append(round(f.get("peak_rss_mib", 0)))
    return (
        f"{result['pairs']} pairs. x: of the baseline {result['baseline']!r}, median (least-"
        f"largest) of calls that took turns.\n\n{measure.table(head, rows)}"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.speed.tree_vs_pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny question and model")
    parser.add_argument("--only", default=",".join(ALL), help="variants, default %(default)s")
    parser.add_argument("--repeat", type=int, default=2, help="whole steps each (%(default)s)")
    parser.add_argument(
        "--at-most",
        type=int,
        default=0,
        metavar="N",
        help="time only N micro-batches of a variant, without its loss; 0, the default: all",
    )
    parser.add_argument("--remat", choices=("none", "full"), help="default full; quick: none")
    parser.add_argument("--tower", default="small", choices=("small", "scaled"), help="%(default)s")
    parser.add_argument("--rss", action="store_true", help="peak RSS too, a process per variant")
    parser.add_argument("--sweep", action="store_true", help="other shapes, and the figure")
    parser.add_argument(
        "--points",
        default="",
        metavar="NAMES",
        help="of --sweep: time only these (image=0,steps=4), or none",
    )
    parser.add_argument(
        "--times",
        default="",
        metavar="FILE",
        help="of --sweep: JSON file in which timed points are kept",
    )
    parser.add_argument("--probe", default="", help=argparse.SUPPRESS)
    workload.add_options(parser, Shape)
    workload.add_options(parser, Width)
    args = parser.parse_args(argv)
    args.remat = args.remat or ("none" if args.quick else "full")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.sweep:
        from studies.speed.tree_vs_pairs import sweep

        measure.finish(sweep.run(quick=args.quick, only=args.points, times=args.times))
        return
    shape = workload.chosen(args, workload.QUICK if args.quick else Shape())
    width = workload.QUICK_WIDTH if args.quick else Width()
    if args.tower == "small":
        width = dataclasses.replace(width, **workload.SMALL_TOWER)
    width = workload.chosen(args, width)
    if args.probe:
        measure.finish({"peak_rss_mib": peak_rss(args.probe, shape, width, args.remat)})
        return

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    names = tuple(name for name in args.only.split(",") if name)
    result = compare(
        shape,
        width,
        names,
        repeat=args.repeat,
        remat=args.remat,
        quick=args.quick,
        at_most=args.at_most,
        say=say,
    )
    if args.rss:
        add_rss(result, argv)
    print(report(result))
    measure.finish(result)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
