"""What asking cost is kept shard by shard, and adds up over commands and kills."""

from __future__ import annotations

import pytest

from srpo_jax.arbiter.chat.cost import Usage
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.judge.judge import judge
from srpo_jax.judge.usage import FILE, UsageLog, read_usage, summed
from tests.judge.test_batches import question, settings
from tests.support.chat_stub import ChatStub
from tests.support.judged import write_trees

JUDGE = {"arbiter": "j", "digest": "d" * 16}


def log(folder, usage, stage="trees") -> UsageLog:
    return UsageLog(folder, stage, JUDGE, "set", usage)


def test_rows_are_what_was_used_since(tmp_path):
    """Sums of rows are the usage of all commands; nothing new is no row, nor is an arbiter that
    asks nobody; a line that a kill tore is passed over, and the next row is whole.
    """
    first, second = Usage(), Usage()
    one, two = log(tmp_path, first), log(tmp_path, second, "answers x")
    first.answered, first.tokens_in, first.dollars = 3, 1000, 0.002
    one.write()
    one.write()
    first.answered, first.tokens_in, first.cached, first.dollars = 5, 1500, 7, 0.003
    one.write()
    second.unanswered, second.tokens_out = 1, 4
    two.write()
    log(tmp_path, None).write()
    path = tmp_path / FILE
    assert [row["answered"] for row in read_usage(tmp_path)] == [3, 2, 0]
    path.write_bytes(path.read_bytes() + b'{"stage": "trees", "ans')
    again = Usage(answered=1, tokens_in=500)
    log(tmp_path, again).write()
    trees, answers = summed(read_usage(tmp_path))
    assert (trees["answered"], trees["cached"], trees["tokens_in"]) == (6, 7, 2000)
    assert trees["dollars"] == pytest.approx(0.003) and trees["unpriced"]
    assert (answers["unanswered"], answers["dollars"], answers["unpriced"]) == (1, None, True)
    assert read_usage(tmp_path / "elsewhere") == []


def test_it_is_written_when_the_judge_gives_up(tmp_path):
    """After a failure and after the end of the stage, so that what was paid for is counted."""
    write_trees(tmp_path / "trees", [question("a")], [question("b"), question("c", 40)])
    faults = {"faults": 1.0, "kinds": ("prose",)}
    with ChatStub(**faults) as stub, pytest.raises((RunFailure, UserError)):
        config = settings(stub.url, rubric="reply_safety", logprobs=False, retries=0)
        judge(config, tmp_path)
    rows = read_usage(tmp_path)
    assert len(rows) == 2 and sum(row["tokens_in"] for row in rows) > 0
    assert {row["stage"] for row in rows} == {"trees"} and rows[0]["dollars"] is None
