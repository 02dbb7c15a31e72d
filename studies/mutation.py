"""How much of a wrong line the nearest tests notice: a seeded sample of one-line mutations.

    pip install 'srpo_jax[test,mutation]'
    python -m studies.mutation --folder=DIR [--count=25] [--seed=1] [--modules=objective,seal]

The mutations are those of cosmic-ray (https://cosmic-ray.readthedocs.io). Of each module in MODULES
a sample of `count` places is drawn, and of each place one mutation; what changes annotations or
docstrings alone is no mutation. Every one is tried with the tests that are named beside the module,
on a copy of the committed tree in DIR, where also the results are kept: the same command again goes
on where it was stopped. A mutation counts as killed when a test fails or does not end in time.

Prints a line for every survivor with its difference and, last, the table; exit code 1 when fewer
than 85 % of all were killed.
"""

from __future__ import annotations

import argparse
import ast
import pathlib
import random
import subprocess
import sys
import tarfile
import time
from typing import Any

from cosmic_ray.commands.init import init
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOAL = 0.85
MODULES = {
    "objective": ("srpo_jax/train/losses/objective.py", "tests/train/losses"),
    "layout": ("srpo_jax/pack/tree_layout.py", "tests/pack/test_tree_layout.py"),
    "pairs": (
        "srpo_jax/pack/tree_layout.py",
        "tests/pack/test_choose_pairs.py tests/pack/test_tree_layout.py",
    ),
    "packing": (
        "srpo_jax/pack/packing.py",
        "tests/pack/test_packing.py tests/pack/test_fill_row.py tests/pack/test_batches.py",
    ),
    "drawing": ("srpo_jax/inference/engine/drawing.py", "tests/inference/engine"),
    "slots": ("srpo_jax/inference/engine/slots.py", "tests/inference/engine"),
    "engine": ("srpo_jax/inference/engine/engine.py", "tests/inference/engine"),
    "leases": (
        "srpo_jax/explore/shard_leases.py",
        "tests/explore/test_shard_leases.py tests/explore/test_lease_holders.py",
    ),
    "owners": (
        "srpo_jax/owners.py",
        "tests/test_owners.py tests/explore/test_lease_holders.py",
    ),
    "rules": ("srpo_jax/arbiter/ssui_mini_rules.py", "tests/arbiter/test_ssui_mini_rules.py"),
    "verdicts": (
        "srpo_jax/data_pipelines/verdict_store.py",
        "tests/data_pipelines/test_verdict_store.py tests/judge/test_judge.py",
    ),
    "seal": (
        "srpo_jax/train/checkpoint/seal.py",
        "tests/train/checkpoint/test_seal.py tests/train/checkpoint/test_manager.py "
        "tests/train/checkpoint/test_folder.py",
    ),
}
# Of the two that share a file: the functions that one of them is about.
PAIRS = ("choose_pairs", "_pairs_at")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.mutation")
    parser.add_argument("--folder", required=True, type=pathlib.Path, help="copy and results")
    parser.add_argument("--count", type=int, default=25, help="mutations of a module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--modules", default=",".join(MODULES))
    args = parser.parse_args()
    tree = args.folder / "tree"
    if not tree.is_dir():
        copy_of_the_commit(tree)
    table = {}
    for name in args.modules.split(","):
        session = args.folder / f"{name}-{args.seed}-{args.count}.sqlite"
        table[name] = run(name, tree, session, args.count, args.seed)
    return tell(table)


def copy_of_the_commit(tree: pathlib.Path) -> None:
    """The files of HEAD, without anything that is not committed."""
    tree.mkdir(parents=True)
    packed = tree.with_suffix(".tar")
    subprocess.run(["git", "archive", f"--output={packed}", "HEAD"], cwd=ROOT, check=True)
    with tarfile.open(packed) as archive:
        archive.extractall(tree, filter="tar")
    packed.unlink()


def run(name: str, tree: pathlib.Path, session: pathlib.Path, count: int, seed: int) -> list[Any]:
    """The results of one module, (mutation, whether killed, difference) each."""
    module, tests = MODULES[name]
    command = f"env PYTHONPATH={tree} JAX_PLATFORMS=cpu {sys.executable} -m pytest -x -q"
    command += f" -p no:cacheprovider --rootdir={tree} -m 'not slow' "
    command += " ".join(str(tree / path) for path in tests.split())
    if not session.is_file():
        fresh = session.with_suffix(".tmp")
        with use_db(str(fresh), WorkDB.Mode.create) as db:
            init(find_modules([tree / module]), db, {})
            chosen = sample(db.work_items, name, count, seed)
            db.clear()
            db.add_work_items(chosen)
        fresh.rename(session)
    begun = time.monotonic()
    if subprocess.run(["sh", "-c", command], cwd=tree, capture_output=True).returncode:
        raise SystemExit(f"{name}: its tests fail without any mutation: {command}")
    limit = 60 + 5 * (time.monotonic() - begun)
    with use_db(str(session)) as db:
        todo = sorted(db.pending_work_items, key=lambda item: item.job_id)
        for number, item in enumerate(todo, 1):
            result = mutate_and_test(item.mutations, f"sh -c {_quoted(command)}", limit)
            db.set_result(item.job_id, result)
            said = "survived" if result.test_outcome == TestOutcome.SURVIVED else "killed"
            place = item.mutations[0].start_pos[0]
            print(f"{name} {number}/{len(todo)}: line {place} {said}", flush=True)
        return [
            (item.mutations[0], result.test_outcome != TestOutcome.SURVIVED, result.diff)
            for item, result in db.completed_work_items
        ]


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\"'\"'") + "'"


def sample(items: Any, name: str, count: int, seed: int) -> list[Any]:
    """A mutation for each of `count` places, drawn by the seed."""
    draw = random.Random(f"{name} {seed}")
    places: dict[Any, list[Any]] = {}
    for item in items:
        (mutation,) = item.mutations
        of_pairs = mutation.definition_name in PAIRS
        if name not in ("layout", "pairs") or of_pairs == (name == "pairs"):
            places.setdefault((mutation.start_pos, mutation.end_pos), []).append(item)
    order = sorted(places)
    draw.shuffle(order)
    chosen = []
    for place in order:
        mutants = sorted(places[place], key=lambda item: str(item.mutations))
        draw.shuffle(mutants)
        chosen += [item for item in mutants if changes_code(item.mutations[0])][:1]
        if len(chosen) == count:
            break
    return chosen


def changes_code(mutation: Any) -> bool:
    """Whether a mutation changes more than annotations, docstrings and what is only checked."""
    source = mutation.module_path.read_text()
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    mutated = mutate_code(source, operator, mutation.occurrence)
    try:
        return mutated is not None and _bare(source) != _bare(mutated)
    except SyntaxError:
        return False


class _Strip(ast.NodeTransformer):
    """Takes away annotations, and texts that stand alone."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if alone else self.generic_visit(node)


def _bare(source: str) -> str:
    return ast.dump(_Strip().visit(ast.parse(source)))


def tell(table: dict[str, list[Any]]) -> int:
    """Prints survivors and table."""
    for name, found in table.items():
        for mutation, killed, diff in found:
            if not killed:
                lines = [line for line in (diff or "").splitlines() if line[:1] in ("+", "-")]
                lines = [line for line in lines if line[:3] not in ("+++", "---")]
                shown = " => ".join(line[1:].strip() for line in lines)
                print(f"survivor: {name}:{mutation.start_pos[0]}: {shown}")
    total = killed_in_all = 0
    print(f"{'module':<12}{'tried':>8}{'killed':>8}{'share':>8}")
    for name, found in table.items():
        killed = sum(killed for _, killed, _ in found)
        total, killed_in_all = total + len(found), killed_in_all + killed
        print(f"{name:<12}{len(found):>8}{killed:>8}{killed / max(len(found), 1):>8.0%}")
    print(f"{'all':<12}{total:>8}{killed_in_all:>8}{killed_in_all / max(total, 1):>8.0%}")
    return int(killed_in_all < GOAL * total)


if __name__ == "__main__":
    sys.exit(main())
