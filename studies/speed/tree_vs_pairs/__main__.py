"""One step over a question: its tree in one row, against pairwise rows. Same loss, same gradients.

    python -m studies.speed.tree_vs_pairs [--quick] [--only tree,pairs] [--rss] [--sweep]

The variants (variants.py), all through srpo_jax.train.losses.objective, value and gradient of every
parameter:
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

from srpo_jax.errors import UserError
from studies.speed import timing, workload
from studies.speed.tree_vs_pairs import sweep
from studies.speed.tree_vs_pairs.compare import compare
from studies.speed.tree_vs_pairs.variants import build, program
from studies.speed.workload import Shape, Width

ALL = ("tree", "pairs", "unique", "8-pairs", "8-tree")


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
                timing.ratio(f.get("wall_ratio")),
                timing.ratio(f.get("cpu_ratio")),
                f["temp_mib"],
                f"{f['loss']:.6f}" if "loss" in f else "-",
                *difference,
            ]
        )
        if len(head) > 12:
            rows[-1].append(round(f.get("peak_rss_mib", 0)))
    return (
        f"{result['pairs']} pairs. x: of the baseline {result['baseline']!r}, median (least-"
        f"largest) of calls that took turns.\n\n{timing.table(head, rows)}"
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
        timing.finish(sweep.run(quick=args.quick, only=args.points, times=args.times))
        return
    shape = workload.chosen(args, workload.QUICK if args.quick else Shape())
    width = workload.QUICK_WIDTH if args.quick else Width()
    if args.tower == "small":
        width = dataclasses.replace(width, **workload.SMALL_TOWER)
    width = workload.chosen(args, width)
    if args.probe:
        timing.finish({"peak_rss_mib": peak_rss(args.probe, shape, width, args.remat)})
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
    timing.finish(result)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
