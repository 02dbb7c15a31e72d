"""The stage: what is asked, what is kept, what a restart repeats, and two judges over one
exploration.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import types

import pytest

from srpo_jax import keepers
from srpo_jax.arbiter.verdict import Judgement, Verdict
from srpo_jax.configs import common
from srpo_jax.data_pipelines.records import RecordError
from srpo_jax.data_pipelines.tree_store import read_shards, shard_path, write_shard
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set, set_names
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.judge import judge as stage
from srpo_jax.judge.judge import judge
from tests.support.judged import branch, plain, tree, write_trees

SAFE, UNSAFE, ERROR = Verdict.SAFE, Verdict.UNSAFE, Verdict.ERROR


class Keeping:
    """Judges by a function of the reply's text, and keeps what it was asked about."""

    def __init__(self, name="keeping", verdict=None, failing=(), spec=None):
        self.name, self.spec, self.failing = name, spec or {}, failing
        self.verdict = verdict or (lambda reply: (SAFE, UNSAFE)[int(reply.split()[-1]) % 2])
        self.cases = []

    def judge(self, cases):
        self.cases += cases
        return [self._one(case) for case in cases]

    def _one(self, case):
        if case.reply in self.failing:
            return Judgement(ERROR, ERROR, (), None, "no answer", failed=True)
        verdict = self.verdict(case.reply)
        return Judgement(verdict, verdict, (), None, f"of {case.reply}")

    @property
    def replies(self):
        return [case.reply for case in self.cases]


def numbered(name: str, count: int, start: int = 0, **changes) -> dict:
    """A tree whose branches have the replies "0 START" and so on; its own reference path's is
    "reply 0".
    """
    branches = [branch(0, k, None, reply_text=f"0 {start + k}") for k in range(count)]
    return tree(name, branches=branches, reply_text="reply 0", **changes)


@pytest.fixture
def config():
    made = common.get_config()
    made.arbiter.kind = "by-hand"
    return made


@pytest.fixture
def workdir(tmp_path):
    """Two shards, three trees, four branches each."""
    write_trees(tmp_path / "trees", [numbered("a", 4), numbered("b", 4)], [numbered("c", 4)])
    return tmp_path


def everything_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_path_is_asked_about_once(config, workdir, capsys):
    """Reference paths and branches; the verdicts are joined to the trees as the arbiter gave them;
    a second call asks nothing and changes no byte, and neither touches the trees.
    """
    trees = everything_in(workdir / "trees")
    arbiter = Keeping()
    summary = judge(config, workdir, arbiter=arbiter)
    assert len(arbiter.cases) == 15 == len({(c.record.id, c.reply) for c in arbiter.cases})
    (name,) = set_names(workdir / "trees")
    for found in JudgedTrees(read_shards(workdir / "trees"), find_set(workdir / "trees")):
        assert [b["reply_verdict"] for b in found["branches"]] == ["SAFE", "UNSAFE"] * 2
        assert [b["detail"] for b in found["branches"]] == [f"of 0 {k}" for k in range(4)]
        assert found["reference_verdict"]["detail"] == "of reply 0"
    assert summary["questions_with_pair"] == 3 and summary["safe"] == summary["unsafe"] == 6
    stored = json.loads((workdir / "verdicts" / name / "summary.json").read_text())
    assert stored == summary and summary["judge"]["arbiter"] == "keeping"
    said = capsys.readouterr().out
    assert "asked about 15 cases, 0 of them ERROR; 0 were judged before" in said
    assert "3 of 3 questions have a pair" in said

    # For training, which then reads no tree.
    assert len(list((workdir / "verdicts" / name).glob("trees-*.keys-*.npz"))) == 2

    before = everything_in(workdir)
    again = Keeping()
    assert judge(config, workdir, arbiter=again) == summary
    assert again.cases == [] and everything_in(workdir) == before
    assert "asked about 0 cases, 0 of them ERROR; 15 were judged before" in capsys.readouterr().out
    assert everything_in(workdir / "trees") == trees


def test_equal_contents_are_asked_once(config, tmp_path):
    """Within a tree, between trees of the same question, and between shards; each of them has the
    verdict.
    """
    same = {"question": "The same?"}
    twice = numbered("a", 2, **same)
    twice["branches"] += [branch(0, 2 + k, None, reply_text=f"0 {k}") for k in range(2)]
    write_trees(tmp_path / "trees", [twice, numbered("b", 3, **same)], [numbered("c", 4, **same)])
    arbiter = Keeping()
    judge(config, tmp_path, arbiter=arbiter)
    assert sorted(arbiter.replies) == ["0 0", "0 1", "0 2", "0 3", "reply 0"]
    verdicts = find_set(tmp_path / "trees")
    joined = list(JudgedTrees(read_shards(tmp_path / "trees"), verdicts, complete=True))
    assert [b["detail"] for b in joined[0]["branches"]] == [f"of 0 {k % 2}" for k in range(4)]
    for stem in ("trees-00000-of-00002", "trees-00001-of-00002"):
        assert len(verdicts.of_shard(stem)) in (4, 5)  # a shard's part is all of its own


def test_two_judges_give_two_sets(config, workdir):
    """Over the same trees, each with its own verdicts and summary; a new version of a judge, by its
    spec, is another one.
    """
    harsh = Keeping("harsh judge!", verdict=lambda reply: UNSAFE)
    trees = everything_in(workdir / "trees")
    assert judge(config, workdir, arbiter=Keeping())["safe"] == 6
    assert judge(config, workdir, arbiter=harsh)["unsafe"] == 12
    assert judge(config, workdir, arbiter=Keeping(spec={"version": 2}))["safe"] == 6
    names = set_names(workdir / "trees")
    assert len(names) == 3 and sum(name.startswith("keeping-") for name in names) == 2
    (harsh_name,) = [name for name in names if name.startswith("harsh-judge-")]
    labels = {
        name: [
            branch["reply_verdict"]
            for found in JudgedTrees(
                read_shards(workdir / "trees"), find_set(workdir / "trees", name)
            )
            for branch in found["branches"]
        ]
        for name in names
    }
    assert set(labels.pop(harsh_name)) == {"UNSAFE"}
    assert all(set(found) == {"SAFE", "UNSAFE"} for found in labels.values())
    assert everything_in(workdir / "trees") == trees


def test_a_set_has_one_judge(config, workdir):
    """A name of one's own is kept; for another judge it is refused, and so is what is no name."""
    judge(config, workdir, arbiter=Keeping(), name="mine")
    before = everything_in(workdir)
    with pytest.raises(UserError, match="verdicts of another judge.*keeping.*--name"):
        judge(config, workdir, arbiter=Keeping(spec={"votes": 3}), name="mine")
    for name in ("../x", "a/b", "."):
        with pytest.raises(UserError, match="must be a plain folder name"):
            judge(config, workdir, arbiter=Keeping(), name=name)
    with pytest.raises(UserError, match="no trees to judge; run `srpo explore` first"):
        judge(config, workdir / "elsewhere", arbiter=Keeping())
    assert {k: v for k, v in everything_in(workdir).items() if k in before} == before


NOT_ASKED = [
    {"finished": False},
    {"reply_text": None, "status": "no_reply"},
    {"reply_text": "  ", "status": "ok"},
    {"status": "irregular"},
]


def test_what_is_no_answer_is_never_asked_about(config, tmp_path):
    """Unfinished, no reply, irregular: ERROR with the reason, and no case of theirs reaches an
    arbiter; explore.irregular=keep asks about the last.
    """
    branches = [
        branch(0, k, None, **{"reply_text": f"0 {k}", **changes})
        for k, changes in enumerate([*NOT_ASKED, {}])
    ]
    write_trees(tmp_path / "trees", [tree(branches=branches, reply_text="reply 0")])
    arbiter = Keeping()
    summary = judge(config, tmp_path, arbiter=arbiter)
    assert sorted(arbiter.replies) == ["0 4", "reply 0"]
    assert all(case.finished for case in arbiter.cases)
    assert (summary["error"], summary["unfinished"], summary["safe"]) == (4, 1, 1)
    (found,) = JudgedTrees(read_shards(tmp_path / "trees"), find_set(tmp_path / "trees"))
    assert [b["reply_verdict"] for b in found["branches"]] == ["ERROR"] * 4 + ["SAFE"]
    config.explore.irregular = "keep"
    assert judge(config, tmp_path, arbiter=arbiter)["error"] == 3
    assert arbiter.replies[2:] == ["0 3"]


def test_a_shard_that_is_sampled_anew_is_judged_anew(config, workdir):
    """Only what is new in it is asked about, though its part was there."""
    judge(config, workdir, arbiter=Keeping())
    write_shard(shard_path(workdir / "trees", 1, 2), [plain(numbered("c", 4, start=2))])
    arbiter = Keeping()
    judge(config, workdir, arbiter=arbiter)
    assert arbiter.replies == ["0 4", "0 5"]
    verdicts = find_set(workdir / "trees")
    joined = list(JudgedTrees(read_shards(workdir / "trees"), verdicts, complete=True))
    assert [b["detail"] for b in joined[2]["branches"]] == [f"of 0 {k}" for k in range(2, 6)]


def test_what_failed_is_asked_again_and_an_opinion_is_not(config, workdir, capsys):
    """An ERROR that the arbiter means stays; one that says nothing is asked at the next start, and
    so often that it is answered.
    """

    def opinion(reply):
        return ERROR if reply == "0 0" else SAFE

    config.arbiter.max_error_fraction = 1.0
    judge(config, workdir, arbiter=Keeping(verdict=opinion, failing=("0 1", "0 2")))
    again = Keeping(verdict=opinion, failing=("0 2",))
    judge(config, workdir, arbiter=again)
    assert sorted(again.replies) == ["0 1"] * 3 + ["0 2"] * 3
    capsys.readouterr()
    last = Keeping(verdict=opinion)
    summary = judge(config, workdir, arbiter=last)
    assert last.replies == ["0 2"] * 3 and (summary["error"], summary["safe"]) == (3, 9)
    assert "12 were judged before" in capsys.readouterr().out


@pytest.mark.parametrize("manner", ["raises", "says failed"])
def test_the_rest_of_a_shard_is_not_asked_in_vain(config, tmp_path, manner):
    """A server that died is not asked about ten thousand cases more, each with its retries; the
    reason is told, and all that was not asked is at the next start.
    """
    write_trees(tmp_path / "trees", [numbered("a", 400)])

    class Down(Keeping):
        down, batch = True, 40

        def judge(self, cases):
            if self.down and manner == "raises":
                self.cases += cases
                raise TimeoutError("server is down")
            return super().judge(cases)

        def _one(self, case):
            if self.down:
                return Judgement(ERROR, ERROR, (), None, "server is down", failed=True)
            return super()._one(case)

    arbiter = Down()
    with pytest.raises(RunFailure, match=r"most often: .*server is down\)") as error:
        judge(config, tmp_path, arbiter=arbiter)
    assert "401 of 401" in str(error.value)
    assert len({case.reply for case in arbiter.cases}) <= 80
    arbiter.down, arbiter.cases = False, []
    assert judge(config, tmp_path, arbiter=arbiter)["error"] == 0 and len(arbiter.cases) == 401


@pytest.mark.parametrize("manner", ["raises", "says failed", "means ERROR"])
def test_too_many_errors_end_the_stage(config, tmp_path, manner):
    """RunFailure with the number and the commonest reason; what was judged is kept, and the same
    command asks only about the rest.
    """
    write_trees(
        tmp_path / "trees",
        [numbered("a", 30, question="first")],
        [numbered("b", 30, question="second")],
    )
    bad = {f"0 {k}" for k in range(0, 30)}

    class Down(Keeping):
        down = True
        batch = 4

        def _one(self, case):
            if self.down and case.reply in bad and case.record.question == "second":
                if manner == "raises":
                    raise TimeoutError("server is down")
                return Judgement(
                    ERROR, ERROR, (), None, "server is down", failed=manner == "says failed"
                )
            return super()._one(case)

    arbiter = Down("shaky")
    said = "cases that shaky was asked about could not be judged.*max_error_fraction=0.1.*is down"
    with pytest.raises(RunFailure, match=said) as error:
        judge(config, tmp_path, arbiter=arbiter)
    assert "\n" not in str(error.value)
    verdicts = find_set(tmp_path / "trees")
    good = [row for row in verdicts.rows() if row["reply_verdict"] != "ERROR"]
    assert len(good) == 32  # all of the first shard, and the second one's reference path
    arbiter.down, arbiter.cases = False, []
    if manner == "means ERROR":  # it is no better for being asked again, and is not asked
        with pytest.raises(RunFailure, match=said):
            judge(config, tmp_path, arbiter=arbiter)
        config.arbiter.max_error_fraction = 0.6
    summary = judge(config, tmp_path, arbiter=arbiter)
    if manner == "means ERROR":
        assert arbiter.cases == [] and summary["error"] == 30
    else:
        assert sorted(arbiter.replies) == sorted(bad) and summary["error"] == 0


def test_few_errors_do_not_end_the_stage(config, workdir):
    """Below twenty cases there is no share to speak of; a share below the limit is only told."""
    arbiter = Keeping(failing={f"0 {k}" for k in range(4)})
    assert judge(config, workdir, arbiter=arbiter)["error"] == 12


def test_a_place_that_cannot_be_written_is_told_before_anybody_is_asked(
    config, workdir, monkeypatch
):
    """Also when the set is there already: answers of a judge are dear."""
    arbiter = Keeping()
    (workdir / "verdicts").write_text("a file")
    with pytest.raises(UserError, match="verdicts is a file"):
        judge(config, workdir, arbiter=arbiter, name="x")
    (workdir / "verdicts").unlink()
    judge(config, workdir, arbiter=Keeping(), name="x")
    for part in workdir.glob("verdicts/x/trees-00001*"):
        part.unlink()

    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    before = everything_in(workdir)
    with pytest.raises(PermissionError):
        judge(config, workdir, arbiter=arbiter, name="x")
    judge(config, workdir, arbiter=arbiter, name="x", dry_run=True)
    assert arbiter.cases == [] and everything_in(workdir) == before


def test_a_damaged_part_is_named(config, workdir):
    """Before anybody is asked; removed, as the message says, it is judged again."""
    judge(config, workdir, arbiter=Keeping(), name="mine")
    (part,) = workdir.glob("verdicts/mine/trees-00001-of-00002.0-*.jsonl")
    whole = part.read_bytes()
    part.write_bytes(whole[:-3])
    arbiter = Keeping()
    with pytest.raises(RecordError, match=f"{part}: damaged.*remove it and its manifest"):
        judge(config, workdir, arbiter=arbiter, name="mine")
    assert arbiter.cases == []
    part.unlink()
    part.with_name(part.name + ".manifest.json").unlink()
    judge(config, workdir, arbiter=arbiter, name="mine")
    assert len(arbiter.cases) == 5 and part.read_bytes() == whole


def killed_at(monkeypatch, number: int, after: bool):
    """Makes the number-th file that gets its name the last: killed before or after that."""
    replace, calls = os.replace, []

    def fake(source, target):
        calls.append(target)
        if len(calls) == number and not after:
            raise KeyboardInterrupt
        replace(source, target)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(keepers, "os", types.SimpleNamespace(**{**vars(os), "replace": fake}))


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_it_ends_with_the_same_bytes(config, workdir, monkeypatch, after):
    """Each file in turn is the last one written; the next start leaves what a run that was never
    stopped leaves, and has asked again about one shard at most.
    """
    judge(config, workdir, arbiter=Keeping(), name="whole")
    whole = everything_in(workdir / "verdicts" / "whole")
    for number in range(1, 20):
        arbiter, name = Keeping(), f"killed-{number}"
        with monkeypatch.context() as patch:
            killed_at(patch, number, after)
            try:
                judge(config, workdir, arbiter=arbiter, name=name)
            except KeyboardInterrupt:
                killed = True
            else:
                killed = False
        judge(config, workdir, arbiter=arbiter, name=name)
        assert everything_in(workdir / "verdicts" / name) == whole
        assert len(arbiter.cases) <= 15 + 10
        if not killed:
            break
    assert number == 1 + len(whole)  # every file was the last once


def test_it_follows_an_exploration(config, tmp_path, monkeypatch, capsys):
    """Shards are judged while others are being made, until as many are there as the exploration
    says, also when the last one appears just as the list was read. It may be started first, and
    says that it waits, once.
    """
    workdir = tmp_path / "not_yet"
    folder = workdir / "trees"
    trees = {i: numbered(f"t{i}", 2, question=f"q{i}") for i in range(3)}
    arbiter, seen = Keeping(), []

    def make(index):
        write_shard(shard_path(folder, index, 3), [plain(trees[index])])
        if index == 0:
            (folder / "run.json").write_text(json.dumps({"shards": 3}))

    def sleep(seconds):
        seen.append(len(arbiter.cases))
        make(len(seen) - 1) if len(seen) < 3 else pytest.fail("waits for nothing")

    listed = stage.shards_of

    def list_and_make(place):
        found = listed(place)
        if place == folder and len(found) == 2 and len(arbiter.cases) == 6:
            make(2)  # between the list and the question whether all is there
        return found

    monkeypatch.setattr(stage, "time", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(stage, "shards_of", list_and_make)
    summary = judge(config, workdir, arbiter=arbiter, follow=True)
    assert summary["questions"] == 3 and len(arbiter.cases) == 9 and summary["error"] == 0
    assert seen[:2] == [0, 3]
    assert capsys.readouterr().out.count(f"waiting for the first shard in {folder}") == 1


def test_trees_elsewhere_have_their_verdicts_beside_them(config, workdir, tmp_path_factory):
    """data.trees: the verdicts lie where the trees are, whatever the workdir."""
    config.data.trees = str(workdir / "trees")
    other = tmp_path_factory.mktemp("other")
    judge(config, other, arbiter=Keeping(), name="x")
    assert (workdir / "verdicts" / "x" / "judge.json").is_file() and not list(other.iterdir())


def test_who_judged_is_written_down(config, workdir):
    """Name, digest, spec and what is read of a record, beside the verdicts."""
    judge(config, workdir, arbiter=Keeping(spec={"model": "m"}), name="x")
    about = json.loads((workdir / "verdicts/x/judge.json").read_text())
    content = json.dumps(["keeping", {"model": "m"}, []], sort_keys=True)
    assert about["digest"] == hashlib.sha256(content.encode()).hexdigest()[:16]
    assert (about["arbiter"], about["spec"], about["reads"]) == ("keeping", {"model": "m"}, [])
    assert about["kind"] == "by-hand" and about["created_by"].startswith("srpo_jax ")
