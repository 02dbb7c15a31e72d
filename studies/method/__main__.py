"""python -m studies.method [--world=micro|mini] [--cells=A,B] [--methods=A,B] [--out=DIR] [--quick]
python -m studies.method --phases [--cells=A,B] [--out=DIR]

Tunes on validation, registers, and asks the test split once; see protocol.py. --quick: the settings
that were chosen for docs/method_study.md, on three seeds of its own and the validation split.
--phases: who wins where, in the cells of the micro world; see phases.py.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from srpo_jax.errors import UserError
from srpo_jax.files import write_json, write_text
from studies.method import figures, phase_diagram, phases, tables
from studies.method.protocol import FRESH_SEEDS, TUNING_SEEDS, Study

COMPARED = ("sft filtered", "rft", "rft warm")
# On the test split: these and the candidate; of the other variants the validation split says all.
REPORTED = (
    *("base", *COMPARED, "orpo", "dpo + L_ref", "srpo", "srpo own"),
    *("branches taught", "recovery"),
)
QUICK_SEEDS = (201, 202, 203)
QUICK = (
    *("base", "sft filtered", "rft", "orpo", "srpo", "srpo own"),
    *("branches taught", "branches taught, value"),
)
CHOSEN = pathlib.Path(__file__).parent / "chosen.json"


def make_world(name: str, out: pathlib.Path):
    if name == "micro":
        from studies.method.micro.world_of_study import Micro

        return Micro(out)
    from studies.method.mini import Mini

    return Mini(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.method", description=(__doc__ or ""))
    parser.add_argument("--world", choices=("micro", "mini"), default="micro")
    parser.add_argument("--cells", default="", help="names; default: all, with --quick the first")
    parser.add_argument("--methods", default="", help="names; default: all")
    parser.add_argument("--tuning_seeds", type=int, default=len(TUNING_SEEDS), help="of a setting")
    parser.add_argument(
        "--seeds",
        type=int,
        help=f"fresh ones; default {len(FRESH_SEEDS)}, of phases {len(phases.SEEDS)}",
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/method"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--phases", action="store_true")
    parser.add_argument("--tune_only", action="store_true", help="stop before the test split")
    args = parser.parse_args(argv)
    out = args.out / args.world
    world = make_world(args.world, out)
    study = Study(world, out)
    try:
        cells = _named(args.cells, list(world.cells), "--cells")
        if args.phases:
            _phases(out, cells, args)
            return 0
        methods = _named(
            args.methods, list(QUICK if args.quick else world.methods), "--methods", world.methods
        )
        if args.quick:
            cell = cells[0]
            chosen = json.loads(CHOSEN.read_text(encoding="utf-8"))[args.world][cell]
            results = study.test(
                cell, {m: chosen[m] for m in methods if m in chosen}, QUICK_SEEDS, "validation"
            )
            print(tables.rates(results))
            return 0
        for cell in cells:
            tried = study.tune(cell, methods, TUNING_SEEDS[: args.tuning_seeds])
            write_json(out / cell / "tried.json", tried)
            write_text(out / cell / "tried.svg", figures.frontier(tried))
            if drawn := figures.lines(tried):
                write_text(out / cell / "lines.svg", drawn)
            print(tables.tried(tried))
            if args.tune_only:
                continue
            registered = study.register(cell, tried, COMPARED)
            print(f"{cell}: candidate {registered['candidate']!r}, by validation")
            chosen = registered["chosen"]
            few = {m: chosen[m] for m in chosen if m in (*REPORTED, registered["candidate"])}
            results = study.test(cell, few, FRESH_SEEDS[: args.seeds])
            made = tables.write(out / cell, results, registered)
            print(made)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _phases(out: pathlib.Path, cells: list[str], args: argparse.Namespace) -> None:
    """OUT/micro/phases.json, and the table and the figure of it."""
    if args.world != "micro" or args.methods or args.quick or args.tune_only:
        raise UserError("--phases: goes with --cells, --seeds and --out alone")
    from studies.method.micro.world_of_study import Micro

    registered = json.loads(CHOSEN.read_text(encoding="utf-8"))["micro"]["scarce"]
    study = Study(Micro(out, phases.methods(registered)), out)
    made = phases.make(study, cells, phases.SEEDS[: args.seeds])
    write_json(out / "phases.json", made)
    write_text(out / "phases.svg", phase_diagram.svg(made))
    print(phase_diagram.table(made))


def _named(given: str, default: list[str], flag: str, known=None) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()] or default
    for name in names:
        if name not in (known or default):
            raise UserError(f"{flag}: there is no {name!r}; there is {', '.join(known or default)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
