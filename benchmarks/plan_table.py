"""What `srpo plan` says of the released Qwen2.5-VL sizes on TPU slices: the table of the docs.

    python -m benchmarks.plan_table [--cases=7B:v5e:8x8,3B:v5e:4x4] [--top=2] [--cache=DIR]

Full fine-tuning (float32 parameters and moments, bfloat16 computation) of configs/pod.py, rows of
8192 tokens. Only the models' config.json is read (tests/released); nothing runs on a TPU: memory
and traffic are the compiler's, times an estimate. Prints Markdown, and on the last line JSON.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile

from srpo_jax.cli import VERBS
from srpo_jax.config_load import REPOSITORY, load_config
from srpo_jax.errors import UserError
from srpo_jax.plan import parse_options, plan, progress
from srpo_jax.plan_report import markdown

CASES = ("7B:v5e:8x8", "7B:v5p:4x4x4", "7B:v6e:8x8", "3B:v5e:4x4", "72B:v5p:8x8x8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_table")
    parser.add_argument("--cases", default=",".join(CASES), help="size:chip:shape, with commas")
    parser.add_argument("--top", type=int, default=2, help="candidates that fit, per case")
    parser.add_argument("--cache", default="", help="folder of what was compiled")
    args = parser.parse_args()
    options = {name: default for name, (default, _) in VERBS["plan"].options.items()}
    chosen = parse_options({**options, "top": args.top, "cache": args.cache})
    say, plans = progress(), []
    for case in args.cases.split(","):
        size, _, topology = case.partition(":")
        try:
            found = one_plan(size, topology, chosen, say)
        except UserError as error:
            say(f"{case}: {error}")
            continue
        plans.append({**found, "name": f"Qwen2.5-VL-{size}", "model": f"Qwen2.5-VL-{size}"})
    if not plans:
        return 1
    print(markdown(plans))
    print(json.dumps(plans))
    return 0


def one_plan(size: str, topology: str, chosen, say) -> dict:
    """The plan of a released size. Errors: UserError as `srpo plan`, or for no such size."""
    released = REPOSITORY / "tests" / "released" / f"qwen2_5_vl_{size.lower()}.json"
    if not released.is_file():
        raise UserError(f"no config.json of a {size} in {released.parent}")
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(released.read_text())
        overrides = [f"--config.model.path={folder}"]
        cfg = load_config(str(REPOSITORY / "configs" / "pod.py"), overrides, ("arbiter.kind",))
        return plan(cfg, topology, chosen, say)


if __name__ == "__main__":
    sys.exit(main())
