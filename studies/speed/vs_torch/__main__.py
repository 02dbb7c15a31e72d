"""srpo_jax against transformers + torch on pairs, the way preference training is done today.

    python -m studies.speed.vs_torch [--quick] [--torch-attention sdpa] [--remat none]

Both sides read the same random Qwen2.5-VL checkpoint (real vision tower, frozen on both sides, as
LLaMA-Factory does by default) and compute the loss of RPO's trainer, and its gradients, for the
same pairs of the same question, in float32 on the same cores:
  torch-pairs  every safe x unsafe pair as two rows, 8 pairs a micro-batch, padded to the longest,
               the picture encoded for every row, gradients added up (torch_orpo.py)
  torch-8      8 random pairs, one micro-batch: the step of RPO's trainer
  tree         srpo_jax: all pairs in one packed row; tree-8: the same 8 pairs
Every variant lives in a process of its own, so that peak memory can be told apart; their calls take
turns. Losses and gradient norms must agree to 1e-4, or the run fails. Torch runs eagerly,
without torch.compile. No optimizer step is in the times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.registry import load_model_config
from studies.speed import timing, workload
from studies.speed.workload import Shape, Width

SEED = 1
ALL = ("tree", "torch-pairs", "torch-8", "tree-8")
READING = dict(reference="chosen", odds_from="divergence")  # what RPO's trainer does
LAMBDA = 0.3
AT_ONCE = 8
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class Remote:
    """A variant in a process of its own; the interface of timing.Program."""

    def __init__(self, name: str, argv: list[str], folder: str):
        self.name = name
        command = [
            sys.executable,
            "-m",
            "studies.speed.vs_torch",
            *argv,
            "--worker",
            name,
            "--folder",
            folder,
        ]
        # Idle threads must not burn the cores that the others are timed on.
        env = os.environ | QUIET | {"OMP_WAIT_POLICY": "PASSIVE", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.calls: list[timing.Call] = []
        self.about = self._read()
        self.pieces = range(self.about["pieces"])

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended: {self.process.wait()}")
        return json.loads(line)

    def ask(self, what: str) -> dict:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._read()

    def call(self, _=None) -> None:
        self.calls.append(timing.Call(**self.ask("call")))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    seconds = timing.Program.seconds


def work(name: str, folder: pathlib.Path, args: argparse.Namespace, shape: Shape) -> None:
    """The process of one variant: answers "call" and "result" from stdin, one JSON line each."""
    config = load_model_config(folder)
    tree = workload.random_question(shape, config, SEED)
    maximum = 8 if name.endswith("-8") else 10**9
    from srpo_jax.pack.tree_layout import choose_pairs

    pairs = choose_pairs(tree, pairing="rpo_code", max_pairs=maximum, odds_from="divergence")
    make = _torch_program if name.startswith("torch") else _jax_program
    program, about = make(folder, config, tree, shape, pairs, args)
    print(json.dumps(about | {"pieces": len(program.pieces), "pairs": len(pairs)}), flush=True)
    for line in sys.stdin:
        if line.strip() == "call":
            program.call()
            answer = program.calls[-1]._asdict()
        else:
            loss, norm = program.result()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            answer = {"loss": loss, "gradient_norm": norm, "peak_rss_mib": round(peak)}
        print(json.dumps(answer), flush=True)


def _torch_program(folder, config, tree, shape, pairs, args):
    import torch

    from studies.speed.vs_torch.torch_orpo import Pairwise

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    grid = workload.picture_grid(shape, config)
    # Our prompts hold patches in the order of the tower; transformers takes the processor's.
    pixels = np.empty_like(tree.prompt.patches)
    pixels[config.family.image_layout(grid, config).order] = tree.prompt.patches
    program = Pairwise(
        folder,
        tree,
        pixels,
        grid,
        pairs,
        at_once=AT_ONCE,
        lam=LAMBDA,
        attention=args.torch_attention,
        checkpointing=args.remat == "full",
    )
    return program, {
        "rows": program.rows,
        "real_tokens": program.real_tokens,
        "padded_tokens": program.padded_tokens,
        "version": torch.__version__,
    }


def _jax_program(folder, config, tree, shape, pairs, args):
    import jax

    from srpo_jax.models.hf.load import load_params
    from srpo_jax.models.policy_model import PolicyModel
    from srpo_jax.train.losses.objective import Objective
    from studies.speed.tree_vs_pairs import variants

    params = load_params(folder, config)
    frozen = {"vision": params.pop("vision")}
    variant = variants.tree_variant([tree], [pairs], **READING)
    model = PolicyModel(config, remat=args.remat)
    loss = variants.make_loss(model, Objective(lambda_exp=LAMBDA))
    # The frozen parameters travel with the batch: they have no gradient.
    pieces = [{"batch": variants.as_arrays(b), "frozen": frozen} for b in variant.batches]

    class Tree(timing.Program):
        def call(self, _=None) -> None:
            super().call(params)

        def result(self):
            value, grads = super().result()
            # In float64: numpy's float32 sum of 28 million squares is wrong by 1e-3.
            return value, float(np.linalg.norm(grads.astype(np.float64)))

    program = Tree(
        "tree", lambda p, piece: loss({**p, **piece["frozen"]}, piece["batch"]), pieces, [1.0]
    )
    program.compile(params, args.quick)
    return program, {
        "rows": variant.rows,
        "real_tokens": variant.real_tokens,
        "padded_tokens": variant.padded_tokens,
        "version": jax.__version__,
    }


def check(figures: dict[str, dict]) -> None:
    """The two sides compute the same loss and gradients, or nothing here means anything."""
    for ours, theirs in (("tree", "torch-pairs"), ("tree-8", "torch-8")):
        if not {ours, theirs} <= set(figures):
            continue
        a, b = figures[ours], figures[theirs]
        a["loss_difference"] = abs(a["loss"] - b["loss"])
        a["gradient_norm_difference"] = abs(a["gradient_norm"] / b["gradient_norm"] - 1)
        if a["loss_difference"] > 1e-4 or a["gradient_norm_difference"] > 1e-4:
            raise UserError(
                f"{ours} and {theirs} disagree: losses {a['loss']} and {b['loss']}, "
                f"gradient norms {a['gradient_norm']} and {b['gradient_norm']}"
            )


def compare(args: argparse.Namespace, argv: list[str], shape: Shape, width: Width) -> dict:
    """Starts the processes, times them in turns and gathers the JSON object of the last line."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(QUIET)
        from studies.speed.vs_torch.torch_orpo import write_checkpoint

        write_checkpoint(pathlib.Path(folder), workload.model_config(width))
        programs = []
        try:
            for name in args.only.split(","):
                say(f"starting {name}")
                programs.append(Remote(name, argv, folder))
            times = timing.take_turns(programs, programs[0], {}, args.repeat, say)
            figures = {p.name: p.about | times[p.name] | p.ask("result") for p in programs}
        finally:
            for one in programs:
                one.close()
    for figure in figures.values():
        figure["questions_per_hour"] = round(3600 / figure["wall_s"], 1)
        figure["pairs_per_second"] = round(figure["pairs"] / figure["wall_s"], 2)
    check(figures)
    return {
        "benchmark": "vs_torch",
        "shape": dataclasses.asdict(shape),
        "width": dataclasses.asdict(width),
        "remat": args.remat,
        "torch_attention": args.torch_attention,
        "baseline": programs[0].name,
        "variants": figures,
        **timing.machine(),
    }


def report(result: dict) -> str:
    """The figures as a table."""
    head = [
        "variant",
        "pairs",
        "rows",
        "tokens",
        "padded",
        "step s",
        "CPU s",
        "x wall",
        "x CPU",
        "pairs/s",
        "MiB RSS",
        "loss",
    ]

    rows = [
        [
            name,
            f["pairs"],
            f["rows"],
            f["real_tokens"],
            f["padded_tokens"],
            f["wall_s"],
            f["cpu_s"],
            timing.ratio(f.get("wall_ratio")),
            timing.ratio(f.get("cpu_ratio")),
            f["pairs_per_second"],
            f["peak_rss_mib"],
            f"{f['loss']:.6f}",
        ]
        for name, f in result["variants"].items()
    ]
    return (
        f"torch attention {result['torch_attention']}, remat {result['remat']} on both sides. "
        f"x: of {result['baseline']!r}, median (least-largest).\n\n{timing.table(head, rows)}"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.speed.vs_torch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny question and model")
    parser.add_argument(
        "--only",
        default=",".join(ALL),
        help="variants, default %(default)s; the first is the one that ratios refer to",
    )
    parser.add_argument("--repeat", type=int, default=2, help="whole steps each (%(default)s)")
    parser.add_argument(
        "--remat",
        choices=("none", "full"),
        help="full, the default: gradient checkpointing on both sides",
    )
    parser.add_argument(
        "--torch-attention", default="sdpa", choices=("sdpa", "eager"), help="%(default)s"
    )
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    workload.add_options(parser, Shape)
    workload.add_options(parser, Width)
    args = parser.parse_args(argv)
    args.remat = args.remat or ("none" if args.quick else "full")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    shape = workload.chosen(args, workload.QUICK if args.quick else Shape())
    width = workload.chosen(args, workload.QUICK_WIDTH if args.quick else Width())
    if args.worker:
        work(args.worker, pathlib.Path(args.folder), args, shape)
        return
    result = compare(args, argv, shape, width)
    print(report(result))
    timing.finish(result)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
