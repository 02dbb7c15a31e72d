"""The laboratory of methods: its micro world, its protocol and its statistics."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from srpo_jax.errors import UserError
from studies.method import statistics
from studies.method.__main__ import CHOSEN, QUICK
from studies.method.micro import policy, rows, run, world
from studies.method.micro.data import Cell, Data
from studies.method.micro.lessons import lessons
from studies.method.micro.methods import METHODS
from studies.method.micro.recipes import Recipe
from studies.method.micro.world_of_study import Micro
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


def test_targets_are_found_on_their_paths(params):
    """Each target of a row, branches, taught ones and recoveries too, is the token of a path whose
    beginning is the target's own.
    """
    data = Data(Cell(questions=8, references=0.5), 5)
    recipe = Recipe(explore="paths", teach="all", lam=0.1, recover=0.3, from_reference=True)
    rng = np.random.default_rng(0)

    def base(params, asked, prefixes, seed, **_):
        made = [world.base_path(q, rng) for q in asked]
        return np.stack([np.concatenate([x, m[len(x) :]]) for x, m in zip(prefixes, made)]), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "sample", base)
        made = lessons(recipe, data, params, 1)
    assert any(len(lesson) > 1 for lesson in made)
    for lesson in made:
        paths, on_path = rows.paths_of(lesson)
        places = iter(on_path)
        for layout in lesson:
            for target, place in zip(layout.target_pos, places):
                row, depth = divmod(int(place), policy.DEPTH)
                own, node = [], int(target)
                while node >= 0:
                    own.append(int(layout.tokens[node]))
                    node = int(layout.parent[node])
                assert paths[row, : depth + 1].tolist() == own[::-1]
        total = sum(layout.ref_weight.sum() for layout in lesson)
        more = 0.3 if len(lesson) > 1 else 0.0
        assert abs(total - 1 - more) < 1e-9 or not lesson[0].ref_weight.sum()
    batch = next(rows.batches(made, recipe, [True] * len(made), 1))
    assert len(batch["tokens"]) == rows.QUESTIONS_A_STEP


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
    return [
        {
            "samples": samples,
            "risky": side,
            "benign": side,
            "safe": rng.binomial(samples, shares).tolist(),
            "safe_useful": rng.binomial(samples, shares).tolist(),
            "effective": [samples] * 72,
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
        Recipe(explore="paths", recover=0.1, recover_lam=0.1, keep=0.5, mix=0.2, rounds=2),
    ):
        found = run.run(tmp_path, recipe, cell, 1, ("validation",))["validation"]
        assert sum(found["lost"]) == 72 * run.SAMPLES and len(found["effective"]) == 72
