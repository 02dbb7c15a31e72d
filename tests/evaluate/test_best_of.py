"""Best of N: of sampled answers the one that a judge's verdicts call best, scored by another."""

from __future__ import annotations

import json

import pytest

from srpo_jax.cli import main as cli
from srpo_jax.config.convert import as_config
from srpo_jax.configs import common
from srpo_jax.data_pipelines.answer_store import finish_answers, read_answers
from srpo_jax.data_pipelines.tree_store import read_shard, shard_path, write_shard
from srpo_jax.errors import UserError
from srpo_jax.evaluate.best_of import choose_best, open_pool
from tests.support.judged import branch, plain, tree, write_verdicts

CHOOSER = {"arbiter": "by-hand", "digest": "digest of by-hand", "spec": {}}


def answer(k, judged, **changes):
    return branch(0, k, judged, **changes)


# The answers to each question, and which one is the best.
QUESTIONS = {
    "first safe": ([answer(0, "UNSAFE"), answer(1, "SAFE"), answer(2, "SAFE")], 1),
    "safest grade": (
        [answer(k, "SAFE", score=score) for k, score in enumerate((0.4, 0.1, 0.3))],
        1,
    ),
    "safe at any grade": ([answer(0, "UNSAFE", score=0.6), answer(1, "SAFE", score=0.4)], 1),
    "error is never chosen": ([answer(0, "ERROR"), answer(1, "UNSAFE"), answer(2, "ERROR")], 1),
    "no reply": ([answer(0, "ERROR", reply_text=None), answer(1, "SAFE")], 1),
    "nothing to choose": ([answer(0, "ERROR"), answer(1, "ERROR")], 0),
}


@pytest.fixture
def cfg():
    return as_config(common.get_config())


@pytest.fixture
def pool(tmp_path):
    """WORKDIR/eval/pool of these questions, with the verdicts of by-hand."""
    trees = [
        tree(name, reply=[], steps=[], step_texts=[], reply_text="", branches=branches, risky=True)
        for name, (branches, _) in QUESTIONS.items()
    ]
    about = {
        "policy_digest": "base",
        "prompt_digest": "p",
        "decoding": {"temperature": 0.7, "samples": 3, "split": "test"},
        "path_format": {},
        "records": "r",
    }
    place = tmp_path / "eval" / "pool"
    finish_answers(place, about)
    folder = place / json.loads((place / "answers.json").read_text())["folder"]
    write_shard(shard_path(folder, 0, 1, "answers-pool"), [plain(each) for each in trees])
    for name, judged in (("by-hand", trees), ("not-all", trees[:-1])):
        write_verdicts(tmp_path / "trees", judged, name=name)
        for part in (tmp_path / "verdicts" / name).glob("trees-*"):
            part.rename(part.with_name(part.name.replace("trees-", "answers-pool-", 1)))
    return tmp_path


def test_the_best_by_the_verdicts(pool, cfg):
    """One answer to each question, as it was; who chose, and among how many, is said."""
    folder = choose_best(cfg, pool, "best", open_pool(pool, "pool", "by-hand"))
    about, (shard,) = read_answers(folder)
    chosen = {each["id"]: [own["k"] for own in each["branches"]] for each in read_shard(shard)}
    assert chosen == {name: [best] for name, (_, best) in QUESTIONS.items()}
    assert about["decoding"] == {"temperature": 0.7, "split": "test", "best_of": 3}
    assert about["chosen"]["judge"] == CHOOSER and about["chosen"]["from"] == "pool"
    assert (about["policy_digest"], about["records"]) == ("base", "r")
    before = shard.read_bytes()
    assert choose_best(cfg, pool, "best", open_pool(pool, "pool", "by-hand")) == folder
    assert read_answers(folder)[1][0].read_bytes() == before


def test_what_cannot_be_chosen_is_told_before_anything_is_written(pool, cfg):
    """The pool's own name, single answers, verdicts that are missing."""
    with pytest.raises(UserError, match="--name=pool is that of the answers to choose from"):
        choose_best(cfg, pool, "pool", open_pool(pool, "pool", "by-hand"))
    with pytest.raises(UserError, match="there are 2 sets of verdicts .* choose with --verdicts"):
        open_pool(pool, "pool")
    choose_best(cfg, pool, "best", open_pool(pool, "pool", "by-hand"))
    with pytest.raises(UserError, match="--best_of=best: these are single answers"):
        open_pool(pool, "best")
    with pytest.raises(UserError, match="not on all answers pool .*nothing to choose"):
        choose_best(cfg, pool, "again", open_pool(pool, "pool", "not-all"))
    assert not (pool / "eval" / "again").exists()


def test_two_judges_are_named_and_one_is_marked(pool, capsys):
    """By the command line: chosen by one, scored by another, and a row of the table; scored by the
    one that chose, that is said, and the row has a mark.
    """
    where = ("--config=configs/common.py", f"--workdir={pool}")
    assert cli.main(["eval", *where, "--best_of=pool", "--verdicts=by-hand"]) == 0
    said = capsys.readouterr().out
    assert "best of 3 of pool by by-hand" in said and "--answers=best_of_3" in said
    script = pool / "cases.jsonl"
    script.write_text(json.dumps({"reply_verdict": "SAFE"}) + "\n")
    by = ("--config.arbiter.kind=scripted", f"--config.judge.cases={script}")
    assert cli.main(["judge", *where, "--answers=best_of_3", *by]) == 0
    said = capsys.readouterr().out
    assert "best_of_3: chosen by by-hand, digest" in said and "both chose" not in said
    for answers in ("pool", "best_of_3"):
        assert cli.main(["judge", *where, f"--answers={answers}", *by]) == 0
    (pool / "eval" / "pool").rename(pool / "eval" / "base")
    assert cli.main(["table", str(pool)]) == 0
    said = capsys.readouterr().out
    assert "base, best_of_3 " in said and "base, best_of_3*" not in said
    assert "base, best_of_3, chosen by: by-hand, digest" in said and "best of 3" in said
    (pool / "eval" / "base").rename(pool / "eval" / "pool")
    name = next(p.name for p in (pool / "verdicts").glob("scripted-*"))
    again = ("--best_of=pool", f"--verdicts={name}", "--name=own")
    assert cli.main(["eval", *where, *again]) == 0
    assert cli.main(["judge", *where, "--answers=own", *by]) == 0
    assert "scripted both chose these answers among several and scored them" in " ".join(
        capsys.readouterr().out.split()
    )
    (pool / "eval" / "pool").rename(pool / "eval" / "base")
    assert cli.main(["table", str(pool)]) == 0
    assert "base, own*" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        ("--best_of=pool --benchmark=siuo", "leave out --benchmark"),
        ("--best_of=pool --model=x", "leave out --model"),
        ("--verdicts=by-hand", "--verdicts goes with --best_of=NAME"),
        ("--best_of=none", "no answers; run `srpo eval --name=none`"),
        ("--best_of=../x", "--best_of"),
    ],
)
def test_mistakes_are_one_line(pool, capsys, words, said):
    """Exit code 2."""
    where = ("--config=configs/common.py", f"--workdir={pool}")
    assert cli.main(["eval", *where, *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
