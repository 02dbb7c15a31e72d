"""From a recipe, a cell and a seed to weights."""

from __future__ import annotations

from srpo_jax.train.losses.objective import Objective
from studies.method.micro import policy
from studies.method.micro.data import Cell, Data
from studies.method.micro.lessons import lessons
from studies.method.micro.recipes import Recipe
from studies.method.micro.rows import batches
from studies.method.micro.world import Question


def fit(recipe: Recipe, cell: Cell, base: policy.Params, *, seed: int, steps: int) -> policy.Params:
    """The policy that a recipe makes of the base policy, with the data of a cell and a seed."""
    if recipe == Recipe(rate=0.0):
        return base
    data = Data(cell, seed)
    params = base
    left = steps
    if recipe.warm:
        first = round(recipe.warm * steps)
        plain = Recipe(rate=recipe.rate, filtered=recipe.filtered)
        params = _train(plain, data, params, base, seed, first)
        left -= first
    for number in range(recipe.rounds):
        now = left // (recipe.rounds - number)
        params = _train(recipe, data, params, params, seed + 1000 * number, now)
        left -= now
    if recipe.mix:
        params = policy.mixed(params, base, recipe.mix)
    return params


def _train(
    recipe: Recipe,
    data: Data,
    params: policy.Params,
    sampled_from: policy.Params,
    seed: int,
    steps: int,
) -> policy.Params:
    made = lessons(recipe, data, sampled_from, seed)
    risky = [is_risky(lesson.layouts[0].id) for lesson in made]
    objective = Objective(
        lambda_exp=1.0,
        contrast=recipe.contrast,
        normalise=recipe.normalise,
        beta=0.1 if recipe.contrast == "dpo" else 1.0,
        gamma=0.0,
        ref_coef=1.0,
    )
    return policy.train(
        params,
        batches(made, recipe, risky, seed),
        steps,
        recipe.rate,
        lam=recipe.lam or float(recipe.recover_lam > 0),
        share=recipe.share,
        objective=objective,
    )


def is_risky(name: str) -> bool:
    """Whether a question is, by the name of its tree."""
    scene, request = map(int, name.split("/"))
    return Question(scene, request).risky
