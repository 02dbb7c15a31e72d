"""What a method trains on in the micro world. A lesson is what one question gives: the layouts that
fill its row.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.pack.tree import Branch, Tree, remove_duplicates
from srpo_jax.pack.tree_layout import Pair, TreeLayout, choose_pairs, layout_tree
from studies.method.micro import policy, world
from studies.method.micro.data import Data, Own, Sampled, prompt_of
from studies.method.micro.recipes import Recipe
from studies.method.micro.recovery import recovery, starts_of

PATHS = 24  # sampled and judged a question
PER_POINT = 4
OWN = 8  # whole paths, where a question's reference path is chosen among them
CHOSEN = 2  # of the branch points, where they are chosen


class Lesson(NamedTuple):
    """layouts: that fill the row. kept: own branches that the policy shall go on to say as likely
    as it did."""

    layouts: list[TreeLayout]
    kept: Sequence[Own] = ()


def lessons(recipe: Recipe, data: Data, params: policy.Params, seed: int) -> list[Lesson]:
    """Of every question that the recipe can use. params: the policy that is sampled from."""
    references = data.filtered() if recipe.filtered else dict(data.references)
    if recipe.explore == "none":
        return [_lesson(recipe, data, n, [path]) for n, path in references.items()]
    sampled = Sampled(data, params, seed, recipe.scope)
    everything = range(len(data.questions))
    nothing = np.zeros(0, np.int32)
    recovers = recipe.recover > 0 or recipe.recover_lam > 0
    taught: dict[int, list[np.ndarray]] = {n: [path] for n, path in references.items()}
    if recipe.explore == "reference":
        sampled.add(_points(references, PER_POINT))
    elif recipe.explore == "paths" or recovers:
        sampled.add([(n, nothing, 0, OWN if recovers else PATHS) for n in everything])
    else:
        if recipe.choose == "all":
            sampled.add(_points(references, PER_POINT))
        else:
            _at_chosen_points(recipe, sampled, references)
        sampled.add([(n, nothing, 0, OWN) for n in everything if n not in references])
    if recipe.explore != "reference":
        for n in everything:
            if n not in taught and (own := _choose(recipe.teach, sampled.at(n, 0))):
                taught[n] = own
    if recipe.explore == "own" and not recovers:
        own = {n: paths[0] for n, paths in taught.items() if n not in references}
        if recipe.choose == "all":
            sampled.add([want for want in _points(own, 3) if want[2] > 0])
        else:
            _at_chosen_points(recipe, sampled, own, whole=OWN)
    made = {n: _lesson(recipe, data, n, paths, sampled) for n, paths in taught.items()}
    if recovers:
        starts = starts_of(recipe, data, sampled, list(made))
        few = Counter(start.number for start in starts)
        for start in starts:
            n = start.number
            made[n].layouts.extend(recovery(recipe, data, start, taught[n][0], few[n]))
    return list(made.values())


def _points(paths: dict[int, np.ndarray], count: int) -> list[tuple[int, np.ndarray, int, int]]:
    return [
        (n, path[: world.BORDERS[at]], at, count)
        for n, path in paths.items()
        for at in range(world.STEPS)
    ]


def _at_chosen_points(
    recipe: Recipe, sampled: Sampled, paths: dict[int, np.ndarray], whole: int = 0
) -> None:
    """Branches at two of six points of each path, PATHS in all with those that were sampled to
    choose the points by, of which only those at the chosen points stay. whole: paths that were
    sampled before, of which a path is one.
    """
    if not paths:
        return
    before = 0
    if recipe.choose == "drop":
        before = 2
        sampled.add([want for want in _points(paths, before) if want[2] > 0 or not whole])
        score = {n: _drops(sampled.branches.get(n, [])) for n in paths}
    else:
        asked = [sampled.data.questions[n] for n in paths]
        entropy = policy.entropies(sampled.params, asked, list(paths.values()))
        score = dict(zip(paths, np.add.reduceat(entropy, world.BORDERS[: world.STEPS], axis=1)))
    points = world.STEPS - bool(whole)
    more = (PATHS - whole - before * points) // CHOSEN
    best = {n: set(np.argsort(-np.asarray(score[n]), kind="stable")[:CHOSEN]) for n in paths}
    sampled.add([want for want in _points(paths, more) if want[2] in best[want[0]]])
    for n in paths:
        sampled.keep(n, best[n])


def _drops(branches: Sequence[Own | Branch]) -> list[float]:
    """By point, how much more often a branch is safe after the reference's next step."""
    value = [float(np.mean([b.safe for b in branches if b.at == at] or [1])) for at in range(6)]
    value.append(1.0)
    return [max(value[at + 1] - value[at], 0.0) for at in range(6)]


def _choose(how: str, found: Sequence[tuple[np.ndarray, bool]]) -> list[np.ndarray]:
    """The paths that stand in for a reference, of the whole ones that were sampled."""
    passed = [path for path, good in found if good]
    if how == "all" or len(passed) < 2:
        return list({path.tobytes(): path for path in passed}.values())
    if how == "first":
        return passed[:1]
    ends = world.BORDERS[1:]
    good = Counter(path[:end].tobytes() for path, fine in found if fine for end in ends)
    all_ = Counter(path[:end].tobytes() for path, _ in found for end in ends)

    def value(path: np.ndarray) -> float:
        keys = [path[:end].tobytes() for end in ends]
        return float(np.mean([(good[key] + 1) / (all_[key] + 2) for key in keys]))

    return [max(passed, key=value)]


def _lesson(
    recipe: Recipe,
    data: Data,
    number: int,
    paths: Sequence[np.ndarray],
    sampled: Sampled | None = None,
) -> Lesson:
    """The layouts of one question. paths: whole ones, taught by L_ref in equal parts."""
    question = data.questions[number]
    name = f"{question.scene}/{question.request}"
    found = sampled.branches.get(number, []) if sampled else []
    branches = [Branch(own.at, own.path[world.BORDERS[own.at] :], own.safe) for own in found]
    more = [Branch(0, path, True) for path in paths[1:]]
    main = world.pieces(paths[0])
    tree = Tree(name, prompt_of(question), main, tuple(branches + more))
    share = recipe.ref / len(paths)
    taught = [(len(branches) + k, share) for k in range(len(more))]
    if recipe.keep and not question.risky and found:
        own = [k for k, each in enumerate(found) if each.at == 0]
        taught += [(k, recipe.keep / len(own)) for k in own]
        share *= 1 - recipe.keep
    if recipe.points:
        good = [k for k, branch in enumerate(branches) if branch.safe and branch.at]
        taught += [(k, recipe.points / len(good)) for k in good]
    pairs: list[Pair] = []
    if recipe.lam or recipe.share:
        kept = {id(branch) for branch in remove_duplicates(tree).branches}
        pairs = [
            pair
            for pair in choose_pairs(tree, odds_from=recipe.odds_from)
            if id(tree.branches[pair[0]]) in kept and id(tree.branches[pair[1]]) in kept
        ]
        pairs = _weighed(recipe, tree, pairs)
    tree = dataclasses.replace(tree, taught=tuple(taught))
    layout = layout_tree(tree, pairs, odds_from=recipe.odds_from)
    # The main path is the first sequence; what it was given is 1, or more if it is also a branch.
    weight = layout.ref_weight.copy()
    weight[0] += share - 1
    kept = () if question.risky or not recipe.kl else found
    return Lesson([dataclasses.replace(layout, ref_weight=weight)], kept)


def _weighed(recipe: Recipe, tree: Tree, pairs: list[Pair]) -> list[Pair]:
    """The pairs with weights that sum to 1 again, by point as the recipe says."""
    if not pairs:
        return []
    points = sorted({tree.branches[c].at for c, _, _ in pairs})
    weight = dict.fromkeys(points, 1.0)
    if recipe.weigh == "drop":
        drops = _drops(tree.branches)
        weight = {at: drops[at] + 0.02 for at in points}
    count = Counter(tree.branches[c].at for c, _, _ in pairs)
    total = sum(weight.values())
    return [
        (c, r, weight[at] / total / count[at]) for c, r, _ in pairs for at in (tree.branches[c].at,)
    ]
