"""What `srpo plan` says of the released Qwen2.5-VL sizes on TPU slices: the table of the docs.

    python -m studies.speed.plan_table [--cases=7B:v5e:8x8,3B:v5e:4x4] [--top=2] [--cache=DIR]

Full fine-tuning as configs/pod.py has it, rows of 8192 tokens, compiled with least effort, one
program at a time. Only the models' config.json is read (tests/support/released); nothing runs on a
TPU: memory, FLOPs and traffic are the compiler's, times an estimate. Prints Markdown, and on the
last line one JSON object. Without --cases the table is written into docs/planning.md too. What was
compiled is kept, so it can be stopped and run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from srpo_jax.command.table import VERBS
from srpo_jax.config.load import load_config
from srpo_jax.errors import UserError
from srpo_jax.files import write_text
from srpo_jax.plan.plan import Options, parse_options, plan, progress
from srpo_jax.plan.table import markdown

CASES = ("7B:v5e:8x8", "7B:v5p:4x4x4", "7B:v6e:8x8", "3B:v5e:4x4", "72B:v5p:8x8x8")
ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "planning.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.speed.plan_table")
    parser.add_argument("--cases", default="", help="size:chip:shape, with commas; else all")
    parser.add_argument("--top", type=int, default=2, help="candidates that fit, per case")
    parser.add_argument("--cache", default="", help="folder of what was compiled")
    args = parser.parse_args()
    given = {"top": args.top, "cache": args.cache, "jobs": 1}
    cases = [case for case in args.cases.split(",") if case]

    def plans() -> list[dict[str, Any]]:
        chosen = options_of(given)
        return [one_plan(case, chosen) for case in cases or CASES]

    return show("plan_table", plans, markdown, None if cases else "table")


def options_of(given: Mapping[str, Any]) -> Options:
    """The options of `srpo plan` with these values. Errors: UserError."""
    defaults = {name: default for name, (default, _) in VERBS["plan"].options.items()}
    return parse_options({**defaults, **given})


def show(
    program: str,
    plans: Callable[[], list[dict[str, Any]]],
    table: Callable[[list[dict[str, Any]]], str],
    mark: str | None,
) -> int:
    """Makes the plans, prints their table and the JSON object, and returns the exit code. mark: of
    docs/planning.md, where the table is to stand as well.
    """
    try:
        found = plans()
        if mark:
            write_page(table(found), mark)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    print(table(found))
    print(json.dumps({"versions": versions(), "plans": found}))
    return 0


def one_plan(case: str, chosen: Options) -> dict[str, Any]:
    """The plan of a released size. Errors: UserError as `srpo plan`, or for no such size."""
    with released_model(case) as (folder, size, topology):
        overrides = [f"--config.model.path={folder}"]
        cfg = load_config(str(ROOT / "configs" / "pod.py"), overrides, ("arbiter.kind",))
        return plan(cfg, topology, chosen, progress(f"{size} ")) | names_of(size)


@contextlib.contextmanager
def released_model(case: str) -> Iterator[tuple[str, str, str]]:
    """(a folder with the model's config.json, its size, the slice) of "7B:v5e:8x8". Errors:
    UserError for no such size."""
    size, _, topology = case.partition(":")
    released = ROOT / "tests" / "support" / "released" / f"qwen2_5_vl_{size.lower()}.json"
    if not released.is_file():
        raise UserError(f"no config.json of a {size} in {released.parent}")
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(released.read_text())
        yield folder, size, topology


def names_of(size: str) -> dict[str, str]:
    return {"name": f"Qwen2.5-VL-{size}", "model": f"Qwen2.5-VL-{size}"}


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def write_page(table: str, mark: str) -> None:
    """Puts a table between the two marks of its name in docs/planning.md."""
    begin, end = (f"<!-- {mark}: {word} -->\n" for word in ("begin", "end"))
    before, rest = PAGE.read_text().split(begin)
    after = rest.split(end)[1]
    made_by = ", ".join(f"{name} {version}" for name, version in versions().items())
    write_text(PAGE, f"{before}{begin}\n{table}\n\nMade with {made_by}.\n\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
