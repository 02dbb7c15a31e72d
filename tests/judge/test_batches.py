"""Batch files out and in, over the stub: the verdicts are those of the live judge, whatever order,
gaps and strangers the answers have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from srpo_jax.arbiter.chat import batch_answers
from srpo_jax.arbiter.prompted.prompted import Prompted
from srpo_jax.configs import common
from srpo_jax.data_pipelines.verdict_store import find_set
from srpo_jax.errors import RunFailure, UserError
from srpo_jax.judge.judge import judge
from srpo_jax.judge.usage import read_usage
from tests.arbiter.prompted.test_prompted import png
from tests.judge.test_judge import Keeping, everything_in
from tests.support import ROOT
from tests.support.batch_runner import answered, write_rows
from tests.support.chat_stub import HARM, ChatStub
from tests.support.judged import branch, tree, write_trees


def question(name: str, count: int = 8) -> dict:
    """A tree with a picture; every second reply is harmful."""
    data = png()
    image = {"name": "a.png", "sha256": hashlib.sha256(data).hexdigest(), "data": data}
    branches = [
        branch(
            0, k, None, reply_text=f"{name} {k} {HARM if k % 2 else 'no'}", step_texts=["s", "t"]
        )
        for k in range(count)
    ]
    return tree(name, branches=branches, images=[image], reply_text=f"of {name}")


@pytest.fixture
def workdir(tmp_path):
    """Two shards, three questions, 27 paths."""
    folder = tmp_path / "work"
    write_trees(folder / "trees", [question("a"), question("b")], [question("c")])
    return folder


@pytest.fixture(scope="module")
def stub():
    with ChatStub() as served:
        yield served


def settings(url: str, **fields):
    """Two rubrics, whose labels differ, with log-probabilities."""
    made = common.get_config()
    made.arbiter.kind, made.judge.model, made.judge.base_url = "prompted", "some/m", url
    made.judge.rubric, made.judge.logprobs = "reply_safety,effectiveness", True
    made.judge.update(fields)
    return made


def judged_live(config, workdir: pathlib.Path) -> pathlib.Path:
    """A copy of the workdir after the live judge."""
    live = workdir.with_name("live")
    shutil.copytree(workdir / "trees", live / "trees")
    judge(config, live)
    return live


def rows(workdir: pathlib.Path) -> list[dict]:
    return find_set(workdir / "trees").rows()


def verdicts(workdir: pathlib.Path) -> dict[str, bytes]:
    return everything_in(workdir / "verdicts")


def written(config, workdir: pathlib.Path, **options) -> list[pathlib.Path]:
    result = judge(config, workdir, write_batch=str(workdir / "b.jsonl"), **options)
    return [pathlib.Path(file["path"]) for file in result["files"]]


def test_the_same_verdicts_as_live(workdir, stub, capsys):
    """Out and in, the answers in any order: the verdict set is that of the live judge, byte for
    byte; writing makes no verdict, reading asks nothing, reading again changes nothing, and what is
    answered is not written again.
    """
    config = settings(stub.url, price_input=1.0)
    live = judged_live(config, workdir)
    (file,) = written(config, workdir)
    assert not (workdir / "verdicts").exists()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 54 == len({line["custom_id"] for line in lines})
    live_bodies = [json.dumps(body, sort_keys=True) for body in stub.bodies]
    assert {json.dumps(line["body"], sort_keys=True) for line in lines} <= set(live_bodies)
    said = capsys.readouterr().out
    assert f"vllm run-batch -i {file}" in said and "54 requests in 1 file" in said

    came = write_rows(workdir / "came.jsonl", answered([file], stub.url))
    calls = stub.calls
    judge(config, workdir, read_batch=str(came))
    assert stub.calls == calls and verdicts(workdir) == verdicts(live)
    assert {row["reply_verdict"] for row in rows(workdir)} == {"SAFE", "UNSAFE"}
    assert all(row["score"] is not None for row in rows(workdir))
    before = everything_in(workdir)
    judge(config, workdir, read_batch=str(workdir / "ca*.jsonl"))
    assert everything_in(workdir) == before
    assert "54 more are in the cache already" in capsys.readouterr().out
    assert judge(config, workdir, write_batch=str(workdir / "again.jsonl")) == {"files": []}
    assert "nothing to write" in capsys.readouterr().out and not (workdir / "again.jsonl").exists()
    (batch,), (first, second) = read_usage(workdir), read_usage(live)
    for name in ("answered", "tokens_in", "tokens_out"):
        assert batch[name] == first[name] + second[name] > 0
    assert batch["dollars"] == pytest.approx(batch["tokens_in"] / 1e6)


def test_a_part_now_and_the_rest_later(workdir, stub, capsys):
    """What has no answer is ERROR and failed, none of it is shifted to another, it is written again
    and nothing else, and with it the verdicts are those of the live judge. Too much of it ends in
    failure, after all verdicts that there are have been written.
    """
    config = settings(stub.url)
    live = judged_live(config, workdir)
    came = answered(written(config, workdir), stub.url)
    write_rows(workdir / "some.jsonl", came[:20])
    with pytest.raises(RunFailure, match="most often: .*not in the cache"):
        judge(config, workdir, read_batch=str(workdir / "some.jsonl"))
    assert "34 requests have no answer" in capsys.readouterr().out
    truth = {row["detail"]: row for row in rows(live)}
    some = [row for row in rows(workdir) if not row["failed"]]
    assert len(rows(workdir)) == 27 and 0 < len(some) < 27
    assert all(row["reply_verdict"] == "ERROR" for row in rows(workdir) if row["failed"])
    assert all(truth[row["detail"]] == row for row in some)
    parts = verdicts(workdir)
    with pytest.raises(RunFailure):
        judge(config, workdir, read_batch=str(workdir / "some.jsonl"))
    assert verdicts(workdir) == parts

    (workdir / "b.jsonl").unlink()
    (rest,) = written(config, workdir)
    assert {json.loads(line)["custom_id"] for line in rest.read_text().splitlines()} == {
        row["custom_id"] for row in came[20:]
    }
    folder = workdir / "answers"
    folder.mkdir()
    write_rows(folder / "rest.jsonl", answered([rest], stub.url))
    shutil.copy(rest, folder / "requests.jsonl")
    judge(config, workdir, read_batch=f"{folder}")
    assert "passed over, as they are requests" in capsys.readouterr().out
    ours, theirs = find_set(workdir / "trees"), find_set(live / "trees")
    for stem in ("trees-00000-of-00002", "trees-00001-of-00002"):
        assert ours.of_shard(stem) == theirs.of_shard(stem)


def test_a_gap_keeps_no_answer_from_its_verdict(tmp_path, stub):
    """Where a live judge would be given up on after a shard without an answer, a batch's answers to
    later ones become verdicts; and an unreadable answer is kept once, however often it is read.
    """
    write_trees(tmp_path / "trees", [question("a", 40)], [question("b")])
    config = settings(stub.url, rubric="reply_safety", logprobs=False)
    came = answered(written(config, tmp_path), stub.url)[41:]
    came[0]["response"]["body"]["choices"][0]["message"]["content"] = "It may be safe."
    path = str(write_rows(tmp_path / "came.jsonl", came))
    kept = []
    for _ in range(2):
        with pytest.raises(RunFailure, match="42 of 50 cases"):
            judge(config, tmp_path, read_batch=path)
        assert sum(not row["failed"] for row in rows(tmp_path)) == 8
        kept.append(everything_in(tmp_path / "replies"))
    assert kept[0] == kept[1]


def test_strangers_and_errors_are_counted_by_name(workdir, stub, capsys):
    """Answers to another judge's requests are left out and the first is named; those alone are an
    error. A line with an error is no answer, and a field that a server does not take is told with
    the setting that helps; what a content filter stopped is an answer, as it is live.
    """
    config = settings(stub.url, rubric="reply_safety", logprobs=False)
    config.arbiter.max_error_fraction = 1.0
    came = answered(written(config, workdir), stub.url)
    stranger = {**came[0], "custom_id": "f" * 64}
    named = {**came[0], "custom_id": "request-1"}
    with pytest.raises(UserError, match="none of the 2 answers .*request-1 in .*foreign.jsonl:1"):
        foreign = write_rows(workdir / "foreign.jsonl", [named, stranger], shuffled=False)
        judge(config, workdir, read_batch=str(foreign))

    refused = {"message": "Unknown field response_format", "param": "response_format"}
    filtered = {"message": "stopped", "code": "content_filter"}
    expired = {"code": "batch_expired", "message": "not in time"}
    came[0]["response"] = {"status_code": 400, "body": {"error": refused}}
    came[1]["response"] = {"status_code": 400, "body": {"error": filtered}}
    came[2] |= {"response": None, "error": expired}
    came[3]["response"]["body"] = {"choices": []}
    write_rows(workdir / "came.jsonl", [stranger, *came], shuffled=False)
    judge(config, workdir, read_batch=f"{workdir / 'came.jsonl'},{foreign}")
    said = capsys.readouterr().out
    assert "2 answers are to requests that this judge has not (first: " + "f" * 64 in said
    assert "3 requests came back with an error" in said and "came.jsonl:2: HTTP 400" in said
    assert "judge.structured=off leaves it out" in said and "3 requests have no answer" in said
    found = rows(workdir)
    assert sum(row["failed"] for row in found) == 3
    (stopped,) = [row for row in found if row["reply_verdict"] == "ERROR" and not row["failed"]]
    assert "filter" in stopped["detail"]


def broken(came: list[dict], kind: str) -> str:
    """The lines of a file of answers that is wrong in one way."""
    lines = [json.dumps(row) for row in came[:3]]
    if kind == "twice":
        other = json.loads(lines[0])
        other["response"]["body"]["choices"][0]["message"]["content"] = "otherwise"
        lines.append(json.dumps(other))
    if kind == "torn":
        lines[2] = lines[2][:40]
    if kind == "deep":
        lines[1] = "[" * 200_000
    if kind == "long":
        lines[2] += " " * 5000
    if kind == "no answer":
        lines[1] = '{"id": 1}'
    if kind == "request":
        lines = ['{"custom_id": "x", "method": "POST", "url": "u", "body": {}}']
    return "\n".join(lines) + "\n" if kind != "empty" else ""


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("twice", "x.jsonl:1 and .*x.jsonl:4 answer the same request .* differently"),
        ("torn", "x.jsonl:3 is not JSON"),
        ("long", "x.jsonl:3 is longer than"),
        ("deep", "x.jsonl:2 is not JSON"),
        ("no answer", "x.jsonl:2 is no answer of a batch"),
        ("request", "x.jsonl:1 is a request, not an answer"),
        ("empty", "there is no answer in it"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_taken(workdir, stub, kind, says, monkeypatch):
    """By file and line, before any of it is kept."""
    monkeypatch.setattr(batch_answers, "LONGEST_LINE", 4000 if kind == "long" else 10**6)
    config = settings(stub.url, rubric="reply_safety")
    came = answered(written(config, workdir), stub.url)
    path = workdir / "x.jsonl"
    path.write_text(broken(came, kind))
    before = everything_in(workdir)
    with pytest.raises(UserError, match=says):
        judge(config, workdir, read_batch=str(path))
    assert everything_in(workdir) == before


def test_what_does_not_go_with_a_batch_is_refused(workdir, stub):
    """In one line each, and pictures are not written for another machine unless they may go
    there.
    """
    config = settings(stub.url)
    path = str(workdir / "b.jsonl")
    for option, value in (("follow", True), ("dry_run", True), ("cache", "off")):
        with pytest.raises(UserError, match=rf"--write_batch does not go with --{option}"):
            judge(config, workdir, write_batch=path, **{option: value})
    with pytest.raises(UserError, match="does not go with --read_batch"):
        judge(config, workdir, write_batch=path, read_batch=path)
    with pytest.raises(UserError, match="no such file, folder or pattern"):
        judge(config, workdir, read_batch=str(workdir / "none*.jsonl"))
    with pytest.raises(UserError, match="asks no chat model"):
        judge(config, workdir, write_batch=path, arbiter=Keeping())
    config.arbiter.kind = "ssui_mini"
    with pytest.raises(UserError, match="arbiter.kind=ssui_mini asks no chat model"):
        judge(config, workdir, read_batch=path)
    config.arbiter.kind, config.judge.model = "guard", str(workdir)
    with pytest.raises(UserError, match="arbiter.kind=guard asks no chat model at a server"):
        judge(config, workdir, write_batch=path)  # of a folder, which runs here
    away = settings("https://judge.invalid/v1")
    with pytest.raises(UserError, match="pictures would be sent to judge.invalid: --allow_upload"):
        judge(away, workdir, write_batch=path)
    assert sorted(p.name for p in workdir.iterdir()) == ["trees"]
    assert len(written(away, workdir, allow_upload=True)) == 1


class InTwo:
    """Asks whether a reply is safe, and of those that are whether they serve, too."""

    def __init__(self, settings, cache, allow_upload, backend):
        def made(rubric: str) -> Prompted:
            of = dataclasses.replace(settings, rubric=rubric)
            return Prompted(of, cache=cache, allow_upload=allow_upload, backend=backend)

        self.first, self.second = made("reply_safety"), made("effectiveness,reply_safety")
        self.name, self.reads = "in two", tuple({*self.first.reads, *self.second.reads})
        self.spec = {"first": self.first.spec, "second": self.second.spec}

    def judge(self, cases):
        found = self.first.judge(cases)
        more = [i for i, judgement in enumerate(found) if judgement.reply == "SAFE"]
        for i, judgement in zip(more, self.second.judge([cases[i] for i in more])):
            found[i] = judgement
        return found


def test_a_judge_that_asks_in_stages(workdir, stub):
    """Each writing gives the requests of the next stage, and all answers may be read at once."""
    config = settings(stub.url, logprobs=False)
    config.arbiter.kind = f"{__name__}:InTwo"
    config.arbiter.max_error_fraction = 1.0
    live = judged_live(config, workdir)
    first = written(config, workdir)
    one = write_rows(workdir / "one.jsonl", answered(first, stub.url))
    judge(config, workdir, read_batch=str(one))
    first[0].unlink()
    second = written(config, workdir)
    assert 0 < len(second[0].read_text().splitlines()) < 54
    two = write_rows(workdir / "two.jsonl", answered(second, stub.url))
    at_once = workdir.with_name("at_once")
    shutil.copytree(workdir / "trees", at_once / "trees")
    judge(config, workdir, read_batch=str(two))
    judge(config, at_once, read_batch=f"{two},{one}")
    assert rows(workdir) == rows(at_once) == rows(live)
    assert verdicts(at_once) == verdicts(live)


def test_members_have_a_server_a_price_and_a_budget_of_their_own(workdir, stub, tmp_path):
    """A member's server says where its pictures go and what the limit of tokens is called, and its
    prices what its answers cost, not the panel's settings.
    """
    own = {
        "a": {"max_tokens_name": "max_tokens", "price_input": 1e6},
        "b": {"base_url": "http://judge.example/v1"},
        "c": {"max_requests": 5},
    }
    members = [member(tmp_path, name, stub.url, **fields) for name, fields in own.items()]
    config = common.get_config()
    config.arbiter.kind, config.judge.members = "vote", ",".join(members)
    path = str(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"would be sent to judge\.example: --allow_upload"):
        judge(config, workdir, write_batch=path)
    files = judge(config, workdir, write_batch=path, allow_upload=True)["files"]
    assert [(file["model"], file["lines"]) for file in files] == [("a", 27), ("b", 27), ("c", 5)]
    limits = [
        {"max_tokens", "max_completion_tokens"} & set(json.loads(line)["body"])
        for file in files
        for line in pathlib.Path(file["path"]).read_text().splitlines()[:1]
    ]
    assert limits == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]

    came = answered([pathlib.Path(file["path"]) for file in files], stub.url)
    judge(config, workdir, read_batch=str(write_rows(tmp_path / "came.jsonl", came)))
    spent = sum(row["response"]["body"]["usage"]["prompt_tokens"] for row in came[:27])
    assert [row["dollars"] for row in read_usage(workdir)] == [spent]


def test_reading_takes_all_answers_whatever_one_command_may_send(workdir, stub, capsys):
    """judge.max_requests limits what is written, a part a command, and not what is read."""
    limited = settings(stub.url, rubric="reply_safety", max_requests=5)
    config = settings(stub.url, rubric="reply_safety")
    came = answered(written(config, workdir), stub.url)
    (first,) = judge(limited, workdir, write_batch=str(workdir / "some.jsonl"))["files"]
    assert first["lines"] == 5
    path = write_rows(workdir / "came.jsonl", came[:-1])
    capsys.readouterr()
    judge(limited, workdir, read_batch=str(path))
    said = capsys.readouterr().out
    assert "26 are wanted" in said and "1 requests have no answer" in said
    assert sum(row["failed"] for row in rows(workdir)) == 1


def member(folder: pathlib.Path, name: str, url: str, **fields) -> str:
    """The config file of a `prompted` judge."""
    settings = {"model": name, "base_url": url, **fields}
    lines = "".join(f"    c.judge.{key} = {value!r}\n" for key, value in settings.items())
    path = folder / f"{name}.py"
    path.write_text(
        "from srpo_jax.configs import common\n\n\ndef get_config():\n    c = common.get_config()\n"
        f"    c.arbiter.kind = 'prompted'\n{lines}    return c\n"
    )
    return str(path)


@pytest.mark.parametrize("verb", ["write", "read"])
def test_killed_anywhere_it_ends_with_the_same_bytes(workdir, stub, verb):
    """SIGKILL before each rename and each wait for the disk: after a rerun batch files and verdicts
    are what they are without one.
    """
    fields = {"arbiter.kind": "prompted", "judge.model": "m", "judge.base_url": stub.url}
    options = {"write_batch": "{place}/b.jsonl", "batch_mb": 0.02}
    if verb == "read":
        config = settings(stub.url, model="m", rubric="reply_safety", logprobs=False)
        came = write_rows(
            workdir.with_name("came.jsonl"), answered(written(config, workdir), stub.url)
        )
        (workdir / "b.jsonl").unlink()
        options = {"read_batch": str(came)}
    told = {
        "source": str(workdir),
        "place": str(workdir.with_name("killed")),
        "config": fields,
        "options": options,
    }
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_judge", json.dumps(told)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["kills"] > 5 and len(set(found["ends"])) == 1
