"""`srpo explore --more`: branches for the questions without a pair, beside what is there."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import threading

import pytest

from srpo_jax.arbiter.registry import ARBITERS
from srpo_jax.cli import main as cli
from srpo_jax.config.check import check_exploring
from srpo_jax.data_pipelines.tree_parts import read_plan
from srpo_jax.data_pipelines.tree_store import read_shards, shards_of
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, branch_label, find_set
from srpo_jax.errors import UserError
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.explore.explorer import branch_seed
from srpo_jax.judge import judge as judging
from srpo_jax.judge.judge import judge
from srpo_jax.judge.results.measures import count_pairs
from srpo_jax.train.setup import make_setup
from tests.support.small_world import ArithmeticArbiter, RecitingEngine, world_config, write_world

LABELS = {"scope": "reply", "require_effective": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture
def config(world, monkeypatch):
    """Of the world, with a sampler that recites. With this seed one question of five has a pair at
    first, three after one further part, and all after two.
    """
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    return configured(world)


def configured(world):
    made = world_config(world)
    made.seed = 4
    made.pack.rows = 1
    return made


@pytest.fixture(scope="module")
def explored(world, tmp_path_factory):
    """A workdir that is explored and judged."""
    return walked(world, tmp_path_factory.mktemp("explored"), parts=0)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """The same, with a further part that nothing stopped; that is not judged."""
    return walked(world, tmp_path_factory.mktemp("finished"), parts=1)


def walked(world, workdir, parts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "Engine", RecitingEngine)
        explore(configured(world), workdir)
        judge(configured(world), workdir, arbiter=ArithmeticArbiter())
        for _ in range(parts):
            explore(configured(world), workdir, more=True)
    return workdir


@pytest.fixture
def workdir(explored, tmp_path):
    """A copy of `explored`."""
    return pathlib.Path(shutil.copytree(explored, tmp_path / "copy"))


def files(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / "trees").iterdir())}


def branches_of(folder):
    return {tree["id"]: tree["branches"] for tree in read_shards(folder)}


def has_pair(tree):
    """By hand: two branches of a point with other tokens, one safe and one unsafe."""
    found = [(b["at"], branch_label(b, **LABELS), tuple(b["tokens"])) for b in tree["branches"]]
    return any(
        at == other and yes is True and no is False and one != two
        for at, yes, one in found
        for other, no, two in found
    )


def without_pair(workdir):
    trees = JudgedTrees(read_shards(workdir / "trees"), find_set(workdir / "trees"))
    return {tree["id"] for tree in trees if not has_pair(tree)}


@pytest.fixture
def sampled(monkeypatch):
    """{(question, tokens before it, seed)} of every branch that is sampled."""
    found, answer = set(), RecitingEngine._answer

    def noted(self, request):
        for start, seed in zip(request.starts, request.seeds, strict=True):
            found.add((request.name, tuple(request.path[:start].tolist()), seed))
        return answer(self, request)

    monkeypatch.setattr(RecitingEngine, "_answer", noted)
    return found


def test_the_whole_walk(config, workdir, tmp_path, sampled):
    """Part after part only questions without a pair get branches, at every point, and these are
    what an exploration with more branches samples; nothing that is there changes by a byte; only
    what is new is judged; and training uses the pairs of all parts together.
    """
    wide = world_config(pathlib.Path(config.model.path).parent)
    wide.seed, wide.explore.branches = 4, 6
    whole = branches_of(explore(wide, tmp_path / "wide"))
    asked = set(sampled)
    many = dict.fromkeys(whole, 2)
    arbiter = ArithmeticArbiter()
    for part, expected in ((1, 3), (2, 5)):
        before, lacking = files(workdir), without_pair(workdir)
        sampled.clear()
        assert lacking and make_setup(config, workdir).batches.with_pair == 5 - len(lacking)
        explore(config, workdir, more=True)
        many.update({name: 2 + 2 * part for name in lacking})
        assert sampled < asked and len(sampled) == 2 * sum(
            len({b["at"] for b in whole[name]}) for name in lacking
        )
        after = files(workdir)
        del before["summary.json"]
        assert {name: after[name] for name in before} == before
        found = branches_of(workdir / "trees")
        assert list(found) == [f"r{i}" for i in range(5)]
        assert found == {n: [b for b in whole[n] if b["k"] < many[n]] for n in found}

        arbiter.cases.clear()
        told = judge(config, workdir, arbiter=arbiter)
        assert told["questions_with_pair"] == expected
        assert {case.record.id for case in arbiter.cases} <= lacking
        assert told["branches"] == sum(map(len, found.values()))
        trees = JudgedTrees(read_shards(workdir / "trees"), find_set(workdir / "trees"))
        options = {"pairing": "all", "max_pairs": 8, "branch_points": "all"}
        pairs = sum(count_pairs(tree, LABELS, **options) for tree in trees)
        setup = make_setup(config, workdir)
        assert (setup.batches.with_pair, setup.batches.pairs) == (expected, pairs)
        assert setup.labels["branches"] == told["branches"]
    summary = json.loads((workdir / "trees" / "summary.json").read_text())
    assert (summary["questions"], summary["branches"]) == (5, told["branches"])


def test_paths_of_the_policy_itself_get_more_branches_too(config, tmp_path, sampled, monkeypatch):
    """With explore.reference=self, where a shard lacks a question that was left out."""
    say = RecitingEngine._say
    hopeless = {branch_seed(4, "r0", "reference", k) for k in range(10)}
    monkeypatch.setattr(
        RecitingEngine, "_say", lambda self, seed: say(self, 3 if seed in hopeless else seed)
    )
    config.explore.reference = "self"
    asked, found = {}, {}
    for branches in (4, 2):
        workdir = tmp_path / f"{branches}"
        config.explore.branches = branches
        explore(config, workdir)
        judge(config, workdir, arbiter=ArithmeticArbiter())
        sampled.clear()
        explore(config, workdir)
        asked[branches], found[branches] = set(sampled), branches_of(workdir / "trees")
    judge(config, workdir, arbiter=ArithmeticArbiter())
    lacking = without_pair(workdir)
    sampled.clear()
    explore(config, workdir, more=True)
    assert lacking and "r0" not in found[2]
    assert sampled and sampled < asked[4] - asked[2]
    assert branches_of(workdir / "trees") == {
        name: (found[4] if name in lacking else found[2])[name] for name in found[2]
    }


@pytest.mark.slow
def test_the_engine_samples_what_more_branches_at_once_are(world, tmp_path):
    """With the real engine, tokens and log-probabilities alike; explore.max_branches ends it."""
    config = configured(world)
    config.explore.max_branches = 3
    explore(config, tmp_path / "parts")
    judge(config, tmp_path / "parts", arbiter=ArithmeticArbiter())
    explore(config, tmp_path / "parts", more=True)
    config.explore.branches = 3
    explore(config, tmp_path / "once")
    assert branches_of(tmp_path / "parts" / "trees") == branches_of(tmp_path / "once" / "trees")


class Killed(BaseException):
    """As SIGKILL would, nobody handles it."""


def test_killed_at_any_write_and_run_again_ends_with_the_same_bytes(
    config, explored, finished, tmp_path, monkeypatch
):
    """Also when a judge has changed its mind in between: the plan holds. A plain `srpo explore`
    finishes a part that was begun, too, and begins none."""
    expected, replace, kills = files(finished), os.replace, 0
    while True:
        workdir, calls = pathlib.Path(shutil.copytree(explored, tmp_path / f"{kills}")), [0]

        def counted(*names, limit=kills, calls=calls):
            if calls[0] >= limit:
                raise Killed
            calls[0] += 1
            replace(*names)

        monkeypatch.setattr(os, "replace", counted)
        try:
            explore(config, workdir, more=True)
            break
        except Killed:
            pass
        finally:
            monkeypatch.setattr(os, "replace", replace)
        begun = (workdir / "trees" / "more-1.jsonl.manifest.json").is_file()
        if begun:
            change_verdicts(workdir)
        explore(config, workdir, more=not begun or kills % 2 == 0)
        assert files(workdir) == expected, kills
        kills += 1
    assert kills > 8 and files(workdir) == expected


def change_verdicts(workdir):
    """Everything is ERROR now, so that no question has a pair."""
    verdicts = find_set(workdir / "trees")
    for shard in ("trees-00000-of-00002", "trees-00001-of-00002"):
        rows = verdicts.of_shard(shard) or {}
        verdicts.write(
            shard, [{"key": key, **row, "reply_verdict": "ERROR"} for key, row in rows.items()]
        )


def test_several_workers_make_one_part(config, finished, workdir, monkeypatch):
    """Two at once: one plans, each shard is sampled once, and all is as one worker makes it."""
    sampled, answer = [], RecitingEngine._answer

    def noted(self, request):
        sampled.append(request.name)
        return answer(self, request)

    monkeypatch.setattr(RecitingEngine, "_answer", noted)
    failed = []

    def work():
        try:
            explore(config, workdir, more=True)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed and files(workdir) == files(finished)
    chosen = [name for each in read_plan(workdir / "trees", 1).shards.values() for name in each.ids]
    assert sorted(sampled) == sorted(f"record {name!r}" for name in chosen)
    assert not (workdir / "trees.claims").exists()


def test_what_decided_is_written_down(config, finished):
    """In the plan, and in every tree of the part: whose verdicts, as they were, and the rules."""
    verdicts = find_set(finished / "trees")
    plan = read_plan(finished / "trees", 1)
    stems = ("trees-00000-of-00002", "trees-00001-of-00002")
    assert plan.about["verdicts"] == {
        "set": verdicts.name,
        "judge": verdicts.judge["digest"],
        "fingerprint": verdicts.fingerprint(stems),
    }
    trees = list(read_shards(finished / "trees"))
    added = [tree for tree in trees if tree["provenance"].get("more")]
    assert [tree["id"] for tree in added] == [n for s in plan.shards.values() for n in s.ids]
    assert 0 < len(added) < len(trees)
    assert all(tree["provenance"]["more"] == plan.about for tree in added)


@pytest.mark.parametrize("rule", ["filter_references", "first"])
def test_the_rules_of_training_decide(config, workdir, rule):
    """A question that training leaves out gets nothing; nor does a point that it does not look
    at."""
    trees = list(JudgedTrees(read_shards(workdir / "trees"), find_set(workdir / "trees")))
    if rule == "first":
        config.objective.branch_points = "first"
        looked = [{**t, "branches": [b for b in t["branches"] if not b["at"]]} for t in trees]
    else:
        config.arbiter.filter_references = True
        safe = [t["id"] for t in trees if branch_label(t["reference_verdict"], **LABELS)]
        looked = [t for t in trees if t["id"] in safe]
    lacking = {t["id"] for t in looked if not has_pair(t)}
    assert rule == "first" or lacking != without_pair(workdir)
    explore(config, workdir, more=True)
    for old, tree in zip(trees, read_shards(workdir / "trees"), strict=True):
        grown = [b["at"] for b in tree["branches"] if b["k"] >= 2]
        points = {b["at"] for b in old["branches"]} if rule != "first" else {0}
        assert grown == (sorted([*points] * 2) if tree["id"] in lacking else [])


def test_when_nothing_is_added(config, workdir, finished, tmp_path, capsys):
    """One line says why, nothing is written, and it is no error; the last part is to be judged."""
    copy = pathlib.Path(shutil.copytree(finished, tmp_path / "finished"))
    config.explore.max_branches = 2
    for place, said in (
        (workdir, "4 of 5 questions have no pair, but explore.max_branches=2 branches at each"),
        (copy, "part 1 is whole and not judged yet: run `srpo judge`, then this command again"),
    ):
        before = files(place)
        capsys.readouterr()
        explore(config, place, more=True)
        out = capsys.readouterr().out
        assert said in out and len(out.splitlines()) == 1 and files(place) == before
    config.explore.max_branches = 10
    for _ in range(2):
        explore(config, workdir, more=True)
        judge(config, workdir, arbiter=ArithmeticArbiter())
    before = files(workdir)
    capsys.readouterr()
    explore(config, workdir, more=True)
    assert capsys.readouterr().out == "explore: nothing to add: each of 5 questions has a pair\n"
    assert files(workdir) == before


def test_the_verb(config, workdir, tmp_path, monkeypatch, capsys):
    """`--more`, and what it needs first, in one line before the policy is read."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import pathlib\nfrom tests.support.small_world import world_config\n\n\n"
        f"def get_config():\n    made = world_config(pathlib.Path({config.model.path!r}).parent)\n"
        "    made.seed = 4\n    return made.lock()\n"
    )
    monkeypatch.setitem(ARBITERS, "arithmetic", ArithmeticArbiter)
    argv = [f"--config={file}", "--more"]
    assert cli.main(["explore", *argv, f"--workdir={workdir}"]) == 0
    assert "4 questions without a pair in 2 shards" in capsys.readouterr().out
    monkeypatch.setattr(
        "srpo_jax.explore.explore.load_policy", lambda *_, **__: pytest.fail("read")
    )
    shutil.rmtree(workdir / "verdicts")
    for wrong, said in (
        ([f"--workdir={tmp_path / 'new'}"], "run `srpo explore` and `srpo judge` first"),
        ([f"--workdir={workdir}", "--references"], "leave one out"),
        ([f"--workdir={workdir}", "--config.explore.temperature=0"], "explore.temperature is 0"),
    ):
        assert cli.main(["explore", *argv, *wrong]) == 2
        told = capsys.readouterr()
        assert said in told.err and len(told.err.splitlines()) == 1 and not told.out


def test_without_verdicts_it_says_to_judge_first(config, workdir):
    """None at all, or not on every shard."""
    one = sorted((workdir / "verdicts").glob("*/trees-00001*.jsonl"))
    for path in one:
        path.unlink()
        path.with_name(f"{path.name}.manifest.json").unlink()
    with pytest.raises(UserError, match="no verdicts on 1 of 2 shards .*run `srpo judge` first"):
        explore(config, workdir, more=True)
    shutil.rmtree(workdir / "verdicts")
    with pytest.raises(UserError, match="are not judged yet: run `srpo judge` first"):
        explore(config, workdir, more=True)


@pytest.mark.parametrize("shard", ["trees-00000-of-00002", "trees-00000-of-00002.more-1"])
def test_a_damaged_shard_is_made_again(config, finished, tmp_path, shard):
    """By `srpo explore --verify`, whichever part it is of."""
    workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "copy"))
    path = workdir / "trees" / f"{shard}.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    explore(config, workdir, verify=True)
    assert files(workdir) == files(finished)


def test_who_follows_waits_for_a_part_that_was_begun(config, workdir, finished):
    """`srpo judge --follow` is not at its end while a shard of a plan is missing."""
    assert judging.all_explored(finished / "trees")
    shutil.copytree(finished / "trees", workdir / "trees", dirs_exist_ok=True)
    shards_of(workdir / "trees")[-1].unlink()
    assert not judging.all_explored(workdir / "trees")


@pytest.mark.parametrize(
    ("temperature", "branches", "fine"), [(0, 1, True), (0, 2, False), (0.1, 2, True)]
)
def test_greedy_branches_are_refused(config, temperature, branches, fine):
    """They would all be the same, so there could be no pair."""
    config.explore.temperature, config.explore.branches = float(temperature), branches
    if fine:
        return check_exploring(config)
    with pytest.raises(
        UserError, match="explore.temperature is 0 and config.explore.branches is 2"
    ):
        check_exploring(config)
