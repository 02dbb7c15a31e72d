"""The laboratory of methods: its micro world, its protocol and its statistics."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import jax
import numpy as np
import optax
import pytest

from srpo_jax.errors import UserError
from srpo_jax.train.losses.objective import Objective
from studies.method import figures, phase_diagram, phases, statistics
from studies.method.__main__ import CHOSEN, QUICK, QUICK_SEEDS
from studies.method.micro import fit, policy, rows, run, world
from studies.method.micro.data import Cell, Data
from studies.method.micro.lessons import lessons
from studies.method.micro.methods import METHODS
from studies.method.micro.recipes import Recipe
from studies.method.micro.world_of_study import Micro, cell_of
from studies.method.protocol import FRESH_SEEDS, TUNING_SEEDS, Method, Study


def test_splits_share_no_combination():
    """Risky and benign alike, half and half, and all requests in each."""
    found = {split: world.questions(split) for split in world.SPLITS}
    for split, (risky, benign) in found.items():
        assert len(risky) == len(benign) == (144 if split == "train" else 72)
        assert all(q.risky for q in risky) and not any(q.risky for q in benign)
        assert {q.request for q in risky} == set(range(72))
    sets = [set(risky + benign) for risky, benign in found.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_the_judge_knows_paths_whatever_their_wording():
    """References are safe and of use, wrong ones are not; the base policy's rates are those of its
    chain; a path that is not well formed has no verdict.
    """
    rng = np.random.default_rng(0)
    risky, benign = world.questions("train")
    for asked in (risky, benign):
        for wrong in (False, True):
            paths = np.stack([world.reference(q, wrong=wrong) for q in asked])
            judged = world.judge(asked, paths)
            assert (judged.concerned == (asked[0].risky != wrong)).all()
            assert judged.useful.all() and judged.whole.all()
            assert [np.concatenate(world.pieces(p)).tolist() for p in paths] == paths.tolist()
    many = risky * 40
    judged = world.judge(many, np.stack([world.base_path(q, rng) for q in many]))
    assert judged.whole.all() and judged.useful.all()
    weak = np.array([q.request % world.DECISIONS for q in many])
    before = np.where(weak > 0, judged.concerned[np.arange(len(many)), weak - 1], True)
    lost = ~judged.concerned[np.arange(len(many)), weak]
    assert abs(lost[before].mean() - world.LOSE_WEAK) < 0.03
    torn = world.reference(risky[0]).copy()
    torn[10] = world.EOS
    assert not world.judge(risky[:1], torn[None]).whole[0]


@pytest.fixture(scope="module")
def params():
    return policy.init(0)


def test_the_sampler_and_the_trainer_are_one_policy(params):
    """The log-probs that tokens were drawn with are those of the forward pass of training, after
    any prefix; greedy draws are the likeliest tokens.
    """
    asked = world.questions("test")[0][:6]
    prefixes = [world.reference(q)[: world.BORDERS[at]] for at, q in enumerate(asked)]
    for temperature in (1.0, 0.0):
        paths, logps = policy.sample(params, asked, prefixes, 3, temperature=temperature)
        whole = np.stack([np.concatenate([q.prompt, p]) for q, p in zip(asked, paths)])
        found = np.asarray(policy.token_logps(params, whole))[:, world.PROMPT :]
        np.testing.assert_allclose(found, logps, atol=2e-5)
        for prefix, path in zip(prefixes, paths):
            assert path[: len(prefix)].tolist() == prefix.tolist()
    again, _ = policy.sample(params, asked[:2], prefixes[:2], 3)
    paths, _ = policy.sample(params, asked, prefixes, 3)
    assert (again == paths[:2]).all()


@pytest.fixture
def drawn(monkeypatch):
    """The base policy's chain draws instead of a network; gives how many paths were asked for, by
    question."""
    rng, counts = np.random.default_rng(0), Counter()

    def sample(params, asked, prefixes, seed, **_):
        counts.update(asked)
        made = [world.base_path(q, rng) for q in asked]
        paths = np.stack([np.concatenate([x, m[len(x) :]]) for x, m in zip(prefixes, made)])
        return paths, np.full(paths.shape, -1.0, np.float32)

    monkeypatch.setattr(policy, "sample", sample)
    return counts


def test_targets_are_found_on_their_paths(params, drawn):
    """Each target of a row, branches, taught ones and recoveries too, is the token of a path whose
    beginning is the target's own.
    """
    data = Data(Cell(questions=8, references=0.5), 5)
    recipe = Recipe(explore="paths", teach="all", lam=0.1, recover=0.3, from_reference=True)
    made = lessons(recipe, data, params, 1)
    assert any(len(lesson.layouts) > 1 for lesson in made)
    for lesson in made:
        paths, on_path = rows.paths_of(lesson.layouts)
        places = iter(on_path)
        for layout in lesson.layouts:
            for target, place in zip(layout.target_pos, places):
                row, depth = divmod(int(place), policy.DEPTH)
                own, node = [], int(target)
                while node >= 0:
                    own.append(int(layout.tokens[node]))
                    node = int(layout.parent[node])
                assert paths[row, : depth + 1].tolist() == own[::-1]
        total = sum(layout.ref_weight.sum() for layout in lesson.layouts)
        more = 0.3 if len(lesson.layouts) > 1 else 0.0
        assert abs(total - 1 - more) < 1e-9 or not lesson.layouts[0].ref_weight.sum()
    batch = next(rows.batches(made, recipe, [True] * len(made), 1))
    assert len(batch["tokens"]) == rows.QUESTIONS_A_STEP


def test_branches_at_chosen_points(params, drawn):
    """Two points of a question and 24 paths of it at most, like where branches are everywhere;
    every benign question's own branches are kept likely, with the weight that was asked for.
    """
    data = Data(Cell(questions=16, references=0.5), 5)
    for choose in ("all", "entropy", "drop"):
        drawn.clear()
        recipe = Recipe(explore="own", points=1.0, choose=choose, kl=0.5)
        made = lessons(recipe, data, params, 1)
        assert 22 <= max(drawn.values()) <= 24, choose
        for lesson in made:
            benign = not fit.is_risky(lesson.layouts[0].id)
            points = {own.at for own in lesson.kept}
            assert bool(points) == benign and (choose == "all" or len(points) <= 2)
            kept = rows.kept_paths(lesson, 24, 0.5)
            assert abs(kept["kept_weight"].sum() - 0.5 * benign) < 1e-5
            assert not (kept["kept_weight"] * (kept["kept_logp"] == 0)).any()


def test_the_divergence_is_that_of_distributions():
    """In the mean over draws KL(drawer || policy); nothing, and no gradient, where both agree."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(6, 5.0), 2)
    found = (q * np.asarray(policy.divergence(np.log(p), np.log(q)))).sum()
    assert found == pytest.approx((q * np.log(q / p)).sum(), rel=1e-4)
    value, slope = jax.value_and_grad(lambda x: policy.divergence(x, np.log(q)).sum())(np.log(q))
    assert abs(value) < 1e-6 and np.abs(slope).max() < 1e-6


@pytest.mark.slow
def test_the_contrast_takes_its_share_of_the_gradient(params, drawn):
    """Whatever lam and the weight of the pairs are, a step is that of L_ref plus the contrast's
    direction, as long as the share says.
    """
    recipe = Recipe(explore="own", lam=1.0)
    made = lessons(recipe, Data(Cell(questions=8), 1), params, 1)
    batch = next(rows.batches(made, recipe, [True] * len(made), 1))
    plain, objective = optax.sgd(1.0), Objective(lambda_exp=1.0)

    def step(share, lam=1.0, **changes):
        scalars = [np.float32(x) for x in (1.0, lam, share)]
        args = (params, plain.init(params), params, {**batch, **changes}, *scalars)
        moved = policy._step(*args, objective, plain)[0]
        leaves = zip(jax.tree.leaves(moved), jax.tree.leaves(params))
        return np.concatenate([np.ravel(a - b) for a, b in leaves])

    of_ref = step(0.0)
    size = np.linalg.norm(of_ref)
    assert size > 0 and not step(0.0, ref_weight=0 * batch["ref_weight"]).any()
    small, large = (step(share) - of_ref for share in (0.1, 0.5))
    assert np.linalg.norm(large) == pytest.approx(0.5 * size, rel=1e-3)
    np.testing.assert_allclose(5 * small, large, atol=1e-3 * size)
    heavy = step(0.5, lam=7.0, pair_weight=3 * batch["pair_weight"])
    np.testing.assert_allclose(heavy - of_ref, large, atol=1e-3 * size)


def test_in_complete_cells_methods_are_others(params, drawn):
    """Where phases leaves a method out, its lessons are those of the other one; elsewhere they are
    not.
    """
    registered = json.loads(CHOSEN.read_text(encoding="utf-8"))["micro"]["scarce"]
    for name, cell in Micro.cells.items():
        if cell.questions == 64:
            continue
        for method, other in phases.SAME.items():
            texts = []
            for which in (method, other):
                recipe = Recipe(**{**registered[which], "lam": 0.1 * (other == "srpo")})
                data = Data(cell, 1)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(policy, "sample", alike)
                    made = lessons(recipe, data, params, 1)
                texts.append([[x.tokens.tolist() for x in each.layouts] for each in made])
            left_out = method not in phases.differing(cell)
            assert left_out == (texts[0] == texts[1]) == ("wrong" not in name)


def alike(params, asked, prefixes, seed, **_):
    """The base policy's chain, alike for alike questions."""
    made = []
    for number, (question, prefix) in enumerate(zip(asked, prefixes)):
        rng = np.random.default_rng([seed, number])
        made.append(np.concatenate([prefix, world.base_path(question, rng)[len(prefix) :]]))
    return np.stack(made), np.zeros((len(made), world.LENGTH), np.float32)


def test_who_wins_a_cell():
    """The best method, if it is above the second by more than chance; the figure and the table say
    so, and nobody else.
    """
    rng = np.random.default_rng(0)
    shares = {"sft filtered": 0.5, "rft": 0.9, "orpo": 0.9}
    clear, even = (
        {
            method: outcomes(share + lift * (method == "orpo"), rng, seeds=3)
            for method, share in shares.items()
        }
        for lift in (0.09, 0.0)
    )
    found = [phases.compared(results) for results in (clear, even)]
    assert [each["winner"] for each in found] == ["orpo", None]
    assert found[0]["order"] == ["orpo", "rft", "sft filtered"]
    assert found[0]["over_sft"]["low"] > 15 and found[1]["over_second"]["low"] <= 0
    for each in found:
        for one in each["rates"].values():
            middle = (one["safe"]["value"] + one["effective"]["value"]) / 2
            assert one["mean"]["value"] == pytest.approx(middle)
    cells = [
        {"name": name, "cell": vars(cell_of(name)), "validation": {"srpo": 40.0}, **each}
        for name, each in zip(("few-wrong", "tenth"), found)
    ]
    means = {"orpo": 90.0, "rft": 84.5, "srpo": 83.5, "sft filtered": 50.0}
    kept = phases.contenders({method: {"mean": mean} for method, mean in means.items()})
    assert kept == ["orpo", "rft", "sft filtered"]
    drawing = phase_diagram.svg({"cells": cells})
    assert drawing.count("<rect") == 3 and drawing.count(">nobody<") == 1
    assert ">orpo<" in drawing and "10 %" in drawing and "30 % wrong" in drawing
    table = phase_diagram.table({"cells": cells})
    assert table.count("| nobody |") == 1 and table.count("(40.0)") == 2


def test_published_figures_are_of_published_numbers():
    """Every drawing in docs is what the program makes of the JSON beside it."""
    folder = CHOSEN.parents[2] / "docs/figures"
    tried, found = (
        json.loads((folder / f"method_{name}.json").read_text(encoding="utf-8"))
        for name in ("study", "phases")
    )
    tried = tried["tried_on_validation"]
    for name, drawing in {
        "tried": figures.frontier(tried),
        "lines": figures.lines(tried),
        "phases": phase_diagram.svg(found),
    }.items():
        assert (folder / f"method_{name}.svg").read_text(encoding="utf-8") == drawing, name
    assert {each["name"]: cell_of(each["name"]) for each in found["cells"]} == Micro.cells
    for each in found["cells"]:
        assert each["cell"] == vars(cell_of(each["name"])) and set(found["seeds"]) <= {
            *phases.SEEDS
        }
    fresh, quick = set(phases.SEEDS), {*FRESH_SEEDS, *TUNING_SEEDS, *QUICK_SEEDS}
    assert not fresh & quick


def test_methods_see_the_same_questions_and_verdicts():
    """The data are of the cell and the seed, and a verdict of the path: no recipe has a say."""
    cell = Cell(questions=32, references=0.25, wrong=0.25, flips=0.2)
    one, other = Data(cell, 4), Data(cell, 4)
    assert one.questions == other.questions and one.references.keys() == other.references.keys()
    numbers = list(one.references)
    paths = np.stack([one.references[n] for n in numbers])
    assert (one.passed(numbers, paths)[0] == other.passed(numbers, paths)[0]).all()
    assert Data(cell, 5).questions != one.questions
    wrong = [n for n in numbers if one.questions[n].risky][:1]
    exact = Data(dataclasses.replace(cell, flips=0.0), 4)
    assert set(numbers) - set(exact.filtered()) == set(wrong)


def test_what_was_chosen_was_tried():
    """The settings that --quick takes are of the published tuning, and all of its methods have
    one."""
    for world_name, cells in json.loads(CHOSEN.read_text(encoding="utf-8")).items():
        assert world_name == "micro"
        for cell, chosen in cells.items():
            assert cell in Micro.cells and set(QUICK) <= set(chosen)
            for method, setting in chosen.items():
                assert setting in list(METHODS[method].settings), method


class Fake:
    """A world whose outcome is a function of the setting; counts its runs."""

    name = "fake"
    cells = {"one": None}
    methods = {
        name: Method(name, "", tuple({"x": x} for x in values))
        for name, values in {"base": [0], "sft filtered": [1, 5], "new": [2, 9, 3]}.items()
    }

    def __init__(self):
        self.runs = []

    def run(self, setting, cell, seed, splits):
        self.runs.append((setting["x"], seed, splits))
        count = setting["x"]
        side = [[i, i] for i in range(10)]
        made = {"samples": 10, "risky": side, "benign": side}
        made |= {name: [count] * 10 for name in ("safe", "safe_useful", "path", "effective")}
        return {split: made for split in splits}


def test_a_study_goes_on_and_keeps_its_word(tmp_path):
    """No run twice; settings by validation alone; what was registered stays; fresh seeds."""
    fake = Fake()
    study = Study(fake, tmp_path, tell=lambda _: None)
    tried = study.tune("one", list(fake.methods))
    assert {split for _, _, splits in fake.runs for split in splits} == {"validation"}
    assert len(fake.runs) == 6 * len(TUNING_SEEDS)
    Study(fake, tmp_path, tell=lambda _: None).tune("one", list(fake.methods))
    assert len(fake.runs) == 6 * len(TUNING_SEEDS)
    registered = study.register("one", tried, ("sft filtered",))
    assert registered["chosen"]["new"] == {"x": 9} and registered["candidate"] == "new"
    with pytest.raises(UserError, match="says something else"):
        study.register("one", {**tried, "new": tried["new"][:1]}, ("sft filtered",))
    results = study.test("one", registered["chosen"], FRESH_SEEDS[:2])
    assert not set(FRESH_SEEDS) & set(TUNING_SEEDS)
    (row,) = statistics.claims(results, "new", ["sft filtered"])
    assert row["safe"].value == 40 and row["won"]


def outcomes(shares, rng, seeds=8, samples=8):
    """Of 72 questions on 36 scenes and 72 requests, with these shares of safe answers."""
    side = [[q.scene, q.request] for q in world.questions("test")[0]]
    shares = np.broadcast_to(shares, 72)
    return [
        {
            "samples": samples,
            "risky": side,
            "benign": side,
            "safe": rng.binomial(samples, shares).tolist(),
            "safe_useful": rng.binomial(samples, shares).tolist(),
            "effective": [samples] * 72,
            "recovered_together": [0] * 72,
            "recovered_plan": [0] * 72,
        }
        for _ in range(seeds)
    ]


def test_intervals_hold_and_equals_are_told_apart_rarely():
    """Questions with much in common by their scene: the interval covers the true rate, where one
    over answers would not; two policies that are alike win seldom.
    """
    rng = np.random.default_rng(1)
    side = np.array([[q.scene, q.request] for q in world.questions("test")[0]])
    covered = narrow = won = 0
    trials = 40
    for _ in range(trials):
        shares = np.clip(0.7 + 0.25 * rng.standard_normal(36)[side[:, 0]], 0, 1)
        truth = 100 * np.clip(0.7 + 0.25 * rng.standard_normal(100_000), 0, 1).mean()
        one, other = outcomes(shares, rng), outcomes(shares, rng)
        found = statistics.estimate(one, "safe")
        covered += found.low <= truth <= found.high
        naive = 196 * np.sqrt(0.7 * 0.3 / (8 * 8 * 72))
        narrow += abs(found.value - truth) <= naive
        won += statistics.claims({"a": one, "b": other}, "a", ["b"])[0]["won"]
    assert covered >= 0.85 * trials > narrow
    assert won <= 0.15 * trials


@pytest.mark.slow
def test_a_run_from_nothing(tmp_path, monkeypatch):
    """A base policy of few steps, a recipe of every kind, on both sides of the record."""
    monkeypatch.setattr(run, "BASE_STEPS", 60)
    monkeypatch.setattr(run, "STEPS", 4)
    cell = Cell(questions=8, references=0.5)
    for recipe in (
        Recipe(rate=0.0),
        Recipe(filtered=True),
        Recipe(explore="own", lam=0.1, warm=0.5, balanced=True, weigh="drop"),
        Recipe(explore="own", share=0.3, kl=0.5, choose="entropy"),
        Recipe(explore="paths", recover=0.1, recover_lam=0.1, keep=0.5, mix=0.2, rounds=2),
    ):
        found = run.run(tmp_path, recipe, cell, 1, ("validation",))["validation"]
        assert sum(found["lost"]) == 72 * run.SAMPLES and len(found["effective"]) == 72
