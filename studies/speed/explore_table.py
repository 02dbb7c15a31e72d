"""What `srpo plan --for=explore` says of released Qwen2.5-VL sizes: a table of docs/planning.md.

    python -m studies.speed.explore_table [--cases=7B:v5e:2x2,72B:v5p:2x2x1] [--cache=DIR]

The questions are those of configs/qwen2_5_vl_7b.py (8 branches after each of 6 prefixes, at most
512 tokens), with branches of 180 tokens on average. Compiled with least effort, one program at a
time; nothing runs on a TPU. Prints Markdown and, on the last line, one JSON object. Without --cases
the table is written into docs/planning.md too. What was compiled is kept: it can be started again.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from srpo_jax.config.load import load_config
from srpo_jax.plan.plan import Options, progress
from srpo_jax.plan.sampling.plan import plan
from srpo_jax.plan.sampling.table import markdown
from studies.speed.plan_table import ROOT, names_of, options_of, released_model, show

CASES = (
    "7B:v5e:2x2",
    "7B:v5e:4x4",
    "7B:v6e:2x2",
    "7B:v5p:2x2x1",
    "72B:v6e:2x4",
    "72B:v5p:2x2x1",
)
UNUSED = ("arbiter.kind", "judge.model")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.explore_table")
    parser.add_argument("--cases", default="", help="size:chip:shape, with commas; else all")
    parser.add_argument("--cache", default="", help="folder of what was compiled")
    args = parser.parse_args()
    given = {"question": "branch_tokens=180", "cache": args.cache, "jobs": 1}
    cases = [case for case in args.cases.split(",") if case]

    def plans() -> list[dict[str, Any]]:
        chosen = options_of(given)
        return [one_plan(case, chosen) for case in cases or CASES]

    return show("explore_table", plans, markdown, None if cases else "explore")


def one_plan(case: str, chosen: Options) -> dict[str, Any]:
    """The plan of a released size. Errors: UserError as `srpo plan`, or for no such size."""
    with released_model(case) as (folder, size, topology):
        overrides = [f"--config.model.path={folder}"]
        config = str(ROOT / "configs" / "qwen2_5_vl_7b.py")
        cfg = load_config(config, overrides, UNUSED)
        return plan(cfg, topology, chosen, progress(f"{size} ")) | names_of(size)


if __name__ == "__main__":
    sys.exit(main())
