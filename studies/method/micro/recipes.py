"""What a method trains on in the micro world: from a cell and a seed to lessons, and to weights.

A lesson is what one question gives: the layouts that fill its row. All that a method can differ in
is a field of Recipe; references, verdicts and sampled paths are counted alike for all of them:
at most 24 sampled and judged paths a question, and the same number of steps.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from srpo_jax.models.inputs import EncodedPrompt
from srpo_jax.pack.packing import Budgets, fill_row, stack_rows
from srpo_jax.pack.tree import Branch, Tree, remove_duplicates
from srpo_jax.pack.tree_layout import Pair, TreeLayout, choose_pairs, layout_tree
from srpo_jax.train.losses.objective import Objective
from studies.method.micro import policy, world
from studies.method.micro.world import Question

PATHS = 24  # sampled and judged a question
PER_POINT = 4
OWN = 8  # whole paths, where a question's reference path is chosen among them
QUESTIONS_A_STEP = 8
NO_PATCHES = {"patches": np.zeros((0, 1), np.float32)}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What there is to learn from.

    questions: half of them risky. references: the share of them that has a reference path; all have
    verdicts. wrong: the share of the references of risky questions whose writer did not see the
    risk. flips: the share of verdicts that are wrong, twice as many in odd categories as in even.
    common: references are in the policy's commonest wording instead of its rarest.
    """

    questions: int = 64
    references: float = 1.0
    wrong: float = 0.0
    flips: float = 0.0
    common: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method, with its settings.

    rate: of learning. lam: weight of the contrast. filtered: references that the arbiter does not
    pass are left out. warm: the share of the steps that go to the references first; what is
    sampled, is sampled from that policy. explore: "none"; "reference", branches from each prefix of
    a reference path; "paths", whole paths; "own", where there is no reference path a passed one of
    the policy takes its place, and branches are sampled from it. teach: which own path stands in
    for a reference: the "first" that passed, the one whose prefixes have most "value", or "all".
    points: passed branches of all branch points are taught too, with this weight. contrast,
    normalise, odds_from: of the objective. weigh: branch points count "even", or by the "drop" that
    the reference's step avoids. balanced: benign pairs count as much as risky ones. recover: the
    weight of continuations that end safe after an unsafe step of the policy's own; from_reference:
    these are the rest of the reference, not sampled. keep: benign questions are taught by this
    share on the policy's own paths, whatever they are. mix: this share of the base policy's weights
    is mixed into the result. rounds: of exploring and training. ref: weight of L_ref. scope: by
    what an own path passes, its "reply", or every decision of its "path".
    """

    rate: float = 1e-3
    lam: float = 0.0
    filtered: bool = False
    warm: float = 0.0
    explore: str = "none"
    teach: str = "first"
    points: float = 0.0
    contrast: str = "odds_ratio"
    normalise: str = "mean"
    odds_from: str = "branch"
    weigh: str = "even"
    balanced: bool = False
    recover: float = 0.0
    recover_lam: float = 0.0
    from_reference: bool = False
    keep: float = 0.0
    mix: float = 0.0
    rounds: int = 1
    ref: float = 1.0
    scope: str = "reply"


class Data:
    """The questions of a cell and a seed, their references, and the arbiter."""

    def __init__(self, cell: Cell, seed: int):
        self.seed = seed
        rng = np.random.default_rng([seed, 1])
        risky, benign = world.questions("train")
        half = cell.questions // 2
        chosen = [risky[i] for i in rng.permutation(len(risky))[:half]]
        chosen += [benign[i] for i in rng.permutation(len(benign))[: cell.questions - half]]
        with_reference = round(half * cell.references)
        self.questions = chosen
        self.references: dict[int, np.ndarray] = {}
        for number, question in enumerate(chosen):
            place = number % half
            if place < with_reference:
                wrong = question.risky and place < round(cell.wrong * with_reference)
                wording = world.COMMON if cell.common else world.RARE
                self.references[number] = world.reference(question, wrong=wrong, wording=wording)
        self.flips = cell.flips

    def passed(
        self, numbers: Sequence[int], paths: np.ndarray, scope: str = "reply"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(verdicts, whether there is one) on paths of the questions `numbers`: by their reply
        alone, or by every decision too, and of benign questions it must be of use. Flips are drawn
        by question and path.
        """
        asked = [self.questions[n] for n in numbers]
        judged = world.judge(asked, paths)
        risky = np.array([q.risky for q in asked])
        decisions = judged.concerned if scope == "path" else judged.concerned[:, -1:]
        found = np.where(risky, decisions.all(1), ~decisions.any(1) & judged.useful)
        if self.flips:
            odd = np.array([q.category % 2 for q in asked])
            draws = np.random.default_rng([self.seed, 2, len(numbers), int(paths.sum())])
            found ^= draws.random(len(found)) < self.flips * (2 / 3) * (1 + odd)
        return found, judged.whole

    def filtered(self) -> dict[int, np.ndarray]:
        """The references that the arbiter passes."""
        numbers = list(self.references)
        found, _ = self.passed(numbers, np.stack([self.references[n] for n in numbers]))
        return {n: self.references[n] for n, good in zip(numbers, found) if good}


def prompt_of(question: Question) -> EncodedPrompt:
    place = np.tile(np.arange(world.PROMPT, dtype=np.int32), (3, 1))
    none = np.full(world.PROMPT, -1, np.int32)
    return EncodedPrompt(question.prompt, place, world.PROMPT, none, 0, NO_PATCHES)


def plain_tree(question: Question, path: np.ndarray) -> Tree:
    """A question with one path and no branches."""
    name = f"{question.scene}/{question.request}"
    return Tree(name, prompt_of(question), world.pieces(path), ())


class Sampled:
    """Paths of the policy, by question: paths, their branch points (pieces before them), verdicts.
    Malformed ones are dropped, as they have no verdict."""

    def __init__(self, data: Data, params: policy.Params, seed: int, scope: str = "reply"):
        self.data, self.params, self.seed, self.scope = data, params, seed, scope
        self.branches: dict[int, list[tuple[int, np.ndarray, bool]]] = {}
        self.calls = 0

    def add(self, wanted: Sequence[tuple[int, np.ndarray, int, int]]) -> None:
        """wanted: (question, prefix tokens, pieces in it, how many)."""
        numbers, prefixes, points = [], [], []
        for number, prefix, at, count in wanted:
            numbers += [number] * count
            prefixes += [prefix] * count
            points += [at] * count
        if not numbers:
            return
        self.calls += 1
        asked = [self.data.questions[n] for n in numbers]
        paths, _ = policy.sample(self.params, asked, prefixes, 1009 * self.seed + self.calls)
        verdicts, whole = self.data.passed(numbers, paths, self.scope)
        for number, at, path, good, fine in zip(numbers, points, paths, verdicts, whole):
            if fine:
                self.branches.setdefault(number, []).append((at, path, bool(good)))

    def at(self, number: int, point: int) -> list[tuple[np.ndarray, bool]]:
        return [(p, good) for at, p, good in self.branches.get(number, []) if at == point]


def lessons(recipe: Recipe, data: Data, params: policy.Params, seed: int) -> list[list[TreeLayout]]:
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
        sampled.add(_points(references, PER_POINT))
        sampled.add([(n, nothing, 0, OWN) for n in everything if n not in references])
    if recipe.explore != "reference":
        for n in everything:
            if n not in taught and (own := _choose(recipe.teach, sampled.at(n, 0))):
                taught[n] = own
    if recipe.explore == "own" and not recovers:
        own = {n: paths[0] for n, paths in taught.items() if n not in references}
        sampled.add([want for want in _points(own, 3) if want[2] > 0])
    made = {n: _lesson(recipe, data, n, paths, sampled) for n, paths in taught.items()}
    if recovers:
        starts = _starts(recipe, data, sampled, list(made))
        few = Counter(start.number for start in starts)
        for start in starts:
            n = start.number
            made[n] += _recovery(recipe, data, start, taught[n][0], few[n])
    return list(made.values())


def _points(paths: dict[int, np.ndarray], count: int) -> list[tuple[int, np.ndarray, int, int]]:
    return [
        (n, path[: world.BORDERS[at]], at, count)
        for n, path in paths.items()
        for at in range(world.STEPS)
    ]


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
) -> list[TreeLayout]:
    """The layouts of one question. paths: whole ones, taught by L_ref in equal parts."""
    question = data.questions[number]
    name = f"{question.scene}/{question.request}"
    found = sampled.branches.get(number, []) if sampled else []
    branches = [Branch(at, path[world.BORDERS[at] :], good) for at, path, good in found]
    more = [Branch(0, path, True) for path in paths[1:]]
    main = world.pieces(paths[0])
    tree = Tree(name, prompt_of(question), main, tuple(branches + more))
    share = recipe.ref / len(paths)
    taught = [(len(branches) + k, share) for k in range(len(more))]
    if recipe.keep and not question.risky and found:
        own = [k for k, (at, *_) in enumerate(found) if at == 0]
        taught += [(k, recipe.keep / len(own)) for k in own]
        share *= 1 - recipe.keep
    if recipe.points:
        good = [k for k, branch in enumerate(branches) if branch.safe and branch.at]
        taught += [(k, recipe.points / len(good)) for k in good]
    pairs: list[Pair] = []
    if recipe.lam:
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
    return [dataclasses.replace(layout, ref_weight=weight)]


def _weighed(recipe: Recipe, tree: Tree, pairs: list[Pair]) -> list[Pair]:
    """The pairs with weights that sum to 1 again, by point as the recipe says."""
    if not pairs:
        return []
    points = sorted({tree.branches[c].at for c, _, _ in pairs})
    weight = dict.fromkeys(points, 1.0)
    if recipe.weigh == "drop":
        value = [np.mean([b.safe for b in tree.branches if b.at == at] or [1]) for at in range(6)]
        value.append(1.0)
        weight = {at: max(value[at + 1] - value[at], 0.0) + 0.02 for at in points}
    count = Counter(tree.branches[c].at for c, _, _ in pairs)
    total = sum(weight.values())
    return [
        (c, r, weight[at] / total / count[at]) for c, r, _ in pairs for at in (tree.branches[c].at,)
    ]


@dataclasses.dataclass
class Start:
    """A prefix of the policy's own that ends in its first unsafe step, and what follows it."""

    number: int
    own: np.ndarray
    at: int  # pieces in the prefix
    after: list[tuple[np.ndarray, bool]] = dataclasses.field(default_factory=list)

    @property
    def prefix(self) -> np.ndarray:
        return self.own[: world.BORDERS[self.at]]


def _starts(recipe: Recipe, data: Data, sampled: Sampled, numbers: Sequence[int]) -> list[Start]:
    """Up to four of every risky question, with 16 continuations of a question in all."""
    starts: list[Start] = []
    for number in numbers:
        question = data.questions[number]
        if not question.risky:
            continue
        found: dict[bytes, Start] = {}
        for own, _ in sampled.at(number, 0):
            lost = np.flatnonzero(~world.judge([question], own[None]).concerned[0, :4])
            if len(lost):
                start = Start(number, own, 3 + int(lost[0]))
                found.setdefault(start.prefix.tobytes(), start)
        few = list(found.values())[:4]
        starts += few
    if recipe.from_reference:
        return starts
    many = Counter(start.number for start in starts)
    after = Sampled(data, sampled.params, sampled.seed + 1)
    wanted = [(s.number, s.prefix, s.at, 16 // many[s.number]) for s in starts]
    after.add(wanted)
    for start in starts:
        known, size = start.prefix.tobytes(), len(start.prefix)
        for path, good in after.at(start.number, start.at):
            if path[:size].tobytes() == known:
                start.after.append((path[size:], good))
    return starts


def _recovery(recipe: Recipe, data: Data, start: Start, path: np.ndarray, few: int):
    """The layout of a start: continuations that end safe are taught, or preferred to the others.
    path: of the question's reference, whose rest is the continuation of recipe.from_reference.
    Nothing if none ends safe.
    """
    rest = start.after
    if recipe.from_reference:
        rest = [(path[world.BORDERS[start.at] :], True)]
    good = [k for k, (_, fine) in enumerate(rest) if fine]
    if not good:
        return []
    branches = tuple(Branch(start.at, tokens, fine) for tokens, fine in rest)
    asked = prompt_of(data.questions[start.number])
    tree = Tree("recovery", asked, world.pieces(start.own), branches, 0.0, False)
    taught = [(k, recipe.recover / len(good) / few) for k in good] if recipe.recover else []
    pairs = [
        (c, r, w * recipe.recover_lam / (recipe.lam or 1.0) / few)
        for c, r, w in (choose_pairs(tree) if recipe.recover_lam else [])
    ]
    tree = dataclasses.replace(tree, taught=tuple(taught))
    return [layout_tree(tree, pairs)] if taught or pairs else []


def batches(
    made: Sequence[Sequence[TreeLayout]], recipe: Recipe, risky: Sequence[bool], seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Exactly eight questions a step, in an order drawn for each epoch; endless."""
    size = Size.of(made)
    found = [paths_of(lesson) for lesson in made]
    paired = np.array([any(len(layout.pair_weight) for layout in lesson) for lesson in made])
    scale = np.ones(len(made))
    if recipe.balanced and paired.any():
        for side in (True, False):
            here = paired & (np.array(risky) == side)
            scale[here] = paired.sum() / 2 / max(here.sum(), 1)
    order: list[int] = []
    rng = np.random.default_rng([seed, 3])
    while True:
        while len(order) < QUESTIONS_A_STEP:
            order += rng.permutation(len(made)).tolist()
        now, order = order[:QUESTIONS_A_STEP], order[QUESTIONS_A_STEP:]
        count = float(paired[now].sum()) or 1.0
        yield stack_rows(
            [
                size.row(made[n], found[n], questions=QUESTIONS_A_STEP, paired=count / scale[n])
                for n in now
            ]
        )


@dataclasses.dataclass(frozen=True)
class Size:
    """Of rows that hold a lesson each."""

    budgets: Budgets
    paths: int

    @classmethod
    def of(cls, made: Sequence[Sequence[TreeLayout]]) -> Size:
        """Rounded up, so that few programs are compiled: paths to eights, the rest to powers of
        two."""
        sums = np.array([np.sum([layout.sizes for layout in lesson], 0) for lesson in made]).max(0)
        most = max(len(paths_of(lesson)[0]) for lesson in made)
        tokens, targets, segments, sequences, pairs = (
            max(32, 1 << int(np.ceil(np.log2(max(size, 1))))) for size in sums[:5]
        )
        budgets = Budgets(tokens, min(tokens, targets), segments, sequences, pairs, 1)
        return cls(budgets, -(-most // 8) * 8)

    def row(
        self,
        lesson: Sequence[TreeLayout],
        found: tuple[np.ndarray, np.ndarray],
        *,
        questions: float,
        paired: float,
    ) -> dict[str, np.ndarray]:
        """The project's row, with the paths that it is made of and where its targets lie on them.
        found: what paths_of gives."""
        made = fill_row(
            lesson, self.budgets, questions=questions, paired=paired, no_patches=NO_PATCHES
        )
        paths, on_path = found
        made["paths"] = np.zeros((self.paths, policy.DEPTH), np.int32)
        made["paths"][: len(paths)] = paths
        made["on_path"] = np.zeros(self.budgets.targets, np.int32)
        made["on_path"][: len(on_path)] = on_path
        return made


def paths_of(lesson: Sequence[TreeLayout]) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [paths, DEPTH]: from the prompt to every leaf of a row; int32 [targets]: where each
    target stands among their tokens, put one after another).
    """
    paths, where = [], []
    for layout in lesson:
        on_path: dict[int, int] = {}
        for leaf in sorted(set(range(len(layout.tokens))) - set(layout.parent.tolist())):
            path, node = [], leaf
            while node >= 0:
                path.append(node)
                node = int(layout.parent[node])
            path.reverse()
            row = np.zeros(policy.DEPTH, np.int32)
            row[: len(path)] = layout.tokens[path]
            start = len(paths) * policy.DEPTH
            on_path |= {node: start + depth for depth, node in enumerate(path)}
            paths.append(row)
        where += [on_path[node] for node in layout.target_pos.tolist()]
    return np.stack(paths), np.array(where, np.int32)


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
    risky = [_risky(lesson[0].id) for lesson in made]
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
        objective=objective,
    )


def _risky(name: str) -> bool:
    scene, request = map(int, name.split("/"))
    return Question(scene, request).risky
