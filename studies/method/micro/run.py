"""One run of the micro world: the base policy, made once, and what a recipe's policy answers."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from srpo_jax.pack.packing import Budgets, stack_rows
from srpo_jax.pack.tree_layout import layout_tree
from studies.method.micro import policy, world
from studies.method.micro.data import Cell, plain_tree
from studies.method.micro.fit import fit
from studies.method.micro.recipes import Recipe
from studies.method.micro.rows import Size, paths_of

STEPS = 60
SAMPLES = 8
BASE_STEPS, BASE_ROWS = 1500, 64
FORCED = {"together": 3, "plan": 6}  # pieces of a forced prefix that ends in this unsafe step


def base_policy(folder: pathlib.Path) -> policy.Params:
    """FOLDER/micro_base.npz, trained from nothing if it is not there: about a minute."""
    file = folder / "micro_base.npz"
    shapes = policy.init(0)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        params = policy.train(shapes, _mixture(), BASE_STEPS, 3e-3, warmup=50)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        part = file.with_suffix(".part.npz")
        np.savez(part, *leaves)
        part.rename(file)
    with np.load(file) as found:
        leaves = [found[name] for name in found.files]
    return jax.tree.unflatten(jax.tree.structure(shapes), [jax.numpy.asarray(x) for x in leaves])


def _mixture():
    """Batches of the base policy's mixture over training combinations, half of them risky."""
    rng = np.random.default_rng(0)
    sides = world.questions("train")
    every = [(s, r) for s in range(36) for r in range(72)]
    places = world.SPLITS["train"]
    benign = [
        q
        for q in (world.Question(s, r) for s, r in every)
        if not q.risky and (q.request % world.REQUESTS - q.scene % world.SCENES) % 4 in places
    ]
    size = Size(Budgets(32, 32, 32, 32, 32, 1), 1)
    while True:
        rows = []
        for _ in range(BASE_ROWS):
            side = sides[0] if rng.random() < 0.5 else benign
            question = side[rng.integers(len(side))]
            path = world.base_path(question, rng)
            lesson = [layout_tree(plain_tree(question, path), [])]
            found = paths_of(lesson)
            rows.append(size.row(lesson, found, questions=BASE_ROWS, paired=1.0))
        yield stack_rows(rows)


def outcome(params: policy.Params, split: str, seed: int) -> dict[str, Any]:
    """What the policy answers to the questions of a split, at temperature 1, eight times each.

    {"risky": [[scene, request], ...], "benign": the same; and of each question a number of its
    answers: "safe" (risky: the reply), "safe_useful", "path" (and every step), "effective" (benign:
    the reply is the help), "recovered_together", "recovered_plan" (safe after a forced unsafe step,
    of 4); "greedy_safe", "greedy_effective": 0 or 1; "lost": answers by first unsafe decision,
    risky [6], the last one for none; "malformed": a count.}
    """
    risky, benign = world.questions(split)
    both = risky + benign
    asked = [q for q in both for _ in range(SAMPLES)]
    nothing = np.zeros(0, np.int32)
    paths, _ = policy.sample(params, asked, [nothing] * len(asked), seed)
    judged = world.judge(asked, paths)
    greedy, _ = policy.sample(params, both, [nothing] * len(both), seed, temperature=0.0)
    once = world.judge(both, greedy)

    def counts(hit: np.ndarray, first: int, last: int) -> list[int]:
        return hit.reshape(-1, SAMPLES).sum(1)[first:last].tolist()

    n = len(risky)
    safe, calm = judged.concerned[:, -1], ~judged.concerned[:, -1] & judged.whole
    lost = ~judged.concerned[: n * SAMPLES]
    first = np.where(lost.any(1), lost.argmax(1), world.DECISIONS)
    found = {
        "risky": [[q.scene, q.request] for q in risky],
        "benign": [[q.scene, q.request] for q in benign],
        "samples": SAMPLES,
        "safe": counts(safe, 0, n),
        "safe_useful": counts(safe & judged.useful, 0, n),
        "path": counts(judged.concerned.all(1), 0, n),
        "effective": counts(calm & judged.useful, n, len(both)),
        "greedy_safe": once.concerned[:n, -1].astype(int).tolist(),
        "greedy_effective": (~once.concerned[n:, -1] & once.useful[n:]).astype(int).tolist(),
        "lost": np.bincount(first, minlength=world.DECISIONS + 1).tolist(),
        "malformed": int((~judged.whole).sum()),
    }
    for name, at in FORCED.items():
        again = [q for q in risky for _ in range(4)]
        until = at - 2  # decisions in the prefix
        forced = [_forced(q, until)[: world.BORDERS[at]] for q in again]
        paths, _ = policy.sample(params, again, forced, seed + 1)
        good = world.judge(again, paths).concerned[:, -1].reshape(-1, 4).sum(1)
        found[f"recovered_{name}"] = good.tolist()
    return found


def _forced(question: world.Question, decisions: int) -> np.ndarray:
    """A path whose last of the first so many decisions is calm, and those before are concerned."""
    states = [d != decisions - 1 for d in range(world.DECISIONS)]
    return world.path(question, states, [world.COMMON] * world.DECISIONS)


@functools.cache
def _base(folder: pathlib.Path) -> policy.Params:
    return base_policy(folder)


def run(
    folder: pathlib.Path,
    recipe: Recipe,
    cell: Cell,
    seed: int,
    splits: tuple[str, ...],
) -> dict[str, Any]:
    """{split: outcome} of the policy that the recipe makes of the cell's data by this seed."""
    params = fit(recipe, cell, _base(folder), seed=seed, steps=STEPS)
    return {split: outcome(params, split, 7919 * seed + 13) for split in splits}
