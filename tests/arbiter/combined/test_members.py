"""Members from config files, and what a combined arbiter adds up of them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.combined.vote import Vote
from srpo_jax.arbiter.prompted.untrusted import blocks
from srpo_jax.arbiter.registry import make_arbiter
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.configs import common
from srpo_jax.errors import UserError
from srpo_jax.judge.asking import describe
from srpo_jax.judge.judge import judge
from tests.arbiter.prompted.test_prompted import make_case
from tests.support import ROOT
from tests.support.chat_stub import HARM, ChatStub
from tests.support.judged import branch, tree, write_trees
from tests.support.panel import ERROR, SAFE, UNSAFE, Member, case, panel, says

CONFIG = """from srpo_jax.configs import common


def get_config():
    config = common.get_config()
    config.arbiter.kind = {kind!r}
    for name, value in {fields!r}.items():
        config.judge[name] = value
    return config
"""


def write_config(path, kind: str, **fields) -> str:
    path.write_text(CONFIG.format(kind=kind, fields=fields))
    return str(path)


def scripted(folder, name: str, *rows) -> str:
    """A config whose judge says what the rows say."""
    cases = folder / f"{name}.jsonl"
    cases.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_config(folder / f"{name}.py", "scripted", cases=str(cases))


def make(kind, members, *, cache=None, **fields):
    settings = JudgeSettings(members=",".join(members), **fields)
    return make_arbiter(kind, settings, cache=cache)


def test_members_of_all_kinds_come_from_their_configs(tmp_path):
    """Also a panel in a panel. Another member, or another setting of one, is another judge; another
    place of its file is not.
    """
    rows = (
        ({"reply_verdict": "SAFE"},),
        ({"reply_verdict": "UNSAFE"},),
        ({"reply_verdict": "SAFE"},),
    )
    files = [scripted(tmp_path, f"j{i}", *rows[i], {"reply_verdict": "ERROR"}) for i in range(2)]
    files.append(scripted(tmp_path, "j2", {"contains": "no", "reply_verdict": "UNSAFE"}, *rows[2]))
    vote = make("vote", files)
    assert [one.reply for one in vote.judge([case("yes"), case("no")])] == [SAFE, UNSAFE]
    inner = write_config(tmp_path / "inner.py", "vote", members=",".join(files))
    cascade = make("cascade", [inner, files[1]])
    first, second = cascade.judge([case("yes"), case("no")])
    assert (first.reply, first.votes) == (UNSAFE, (SAFE, UNSAFE))  # a mean of 1/3 is in the band
    assert (second.reply, second.votes) == (UNSAFE, (UNSAFE, UNSAFE))
    assert cascade.name == "cascade(vote(scripted, scripted, scripted), scripted)"
    digest = describe(vote, "vote")["digest"]
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "j0.py"
    moved.write_text((tmp_path / "j0.py").read_text())
    assert describe(make("vote", [str(moved), *files[1:]]), "vote")["digest"] == digest
    scripted(tmp_path, "j1", {"reply_verdict": "SAFE"}, {"reply_verdict": "ERROR"}, *rows[0])
    assert describe(make("vote", files), "vote")["digest"] != digest


def test_what_is_wrong_with_a_member_is_one_line_with_its_file(tmp_path):
    """No such file, a broken one, one without a judge, and one that leads back to itself."""
    other = scripted(tmp_path, "other", {"reply_verdict": "SAFE"})
    loop, far = str(tmp_path / "loop.py"), str(tmp_path / "far.py")
    write_config(tmp_path / "loop.py", "cascade", members=f"{other},{far}")
    write_config(tmp_path / "far.py", "cascade", members=f"{loop},{other}")
    silent = write_config(tmp_path / "silent.py", "")
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    mute = write_config(tmp_path / "mute.py", "prompted")
    for member, said in {
        str(tmp_path / "gone.py"): "does not exist",
        str(tmp_path / "broken.py"): "division by zero (line 2)",
        silent: "config.arbiter.kind is empty",
        mute: "judge.model is empty",
        loop: "names itself as a member",
        f"{other}:variant": "has no variants",
    }.items():
        with pytest.raises(UserError) as caught:
            make("cascade", [member, other])
        line = str(caught.value)
        assert line.startswith(f"member {member}: ") and said in line and "\n" not in line


@pytest.mark.parametrize("kind", ["vote", "cascade", "jury", "graded"])
def test_the_panels_that_come_along(kind, tmp_path, monkeypatch):
    """Every variant can be made, from any directory, by name or as a copy, and all its judges are
    asked on this machine.
    """
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "mine.py"
    copy.write_text((ROOT / "configs" / "judge_panel.py").read_text())
    for file in ("configs/judge_panel.py", "mine.py"):
        outer = make("cascade", [f"{file}:{kind}", f"{file}:third"])
        preview = outer.preview([make_case(0)])
        assert set(preview.host.split(", ")) == {"127.0.0.1"} and preview.requests >= 1


def write_prompted(folder, name, url, **fields):
    settings = {"model": name, "base_url": url, "retries": 0, **fields}
    return write_config(folder / f"{name}.py", "prompted", **settings)


def workdir_of(folder, count):
    """A tree with so many branches, every second reply of which is unsafe. Its reference path ends
    in the first reply, too: there is a case more than there are replies to ask about.
    """
    replies = [f"Reply {k}. {HARM if k % 2 else 'No.'}" for k in range(count)]
    branches = [branch(0, k, None, reply_text=reply) for k, reply in enumerate(replies)]
    write_trees(folder / "trees", [tree("a", branches=branches, reply_text=replies[0])])
    config = common.get_config()
    config.arbiter.kind = "cascade"
    config.arbiter.max_error_fraction = 1.0
    return config


def rows_of(folder):
    """{reply verdict: details} of the only verdict set."""
    found: dict[str, list[str]] = {}
    (parts,) = [sorted(p.glob("*.jsonl")) for p in (folder / "verdicts").iterdir()]
    rows = {row["key"]: row for p in parts for row in map(json.loads, p.read_text().splitlines())}
    for row in rows.values():
        found.setdefault(row["reply_verdict"], []).append(row["detail"])
    return found


def test_a_budget_that_is_spent_leaves_errors_and_the_next_start_goes_on(tmp_path, capsys):
    """The whole stage with a cascade: a scripted judge that is unsure of all, and a chat model with
    3 requests a command. No case gets the cheap verdict; what is left is asked next time, and what
    was answered is not asked again. The price is that of the member who was asked.
    """
    config = workdir_of(tmp_path, 8)
    cheap = scripted(tmp_path, "cheap", {"reply_verdict": "SAFE", "score": 0.5})
    with ChatStub() as stub:
        prices = {"price_input": 1e6, "price_output": 2e6}
        dear = write_prompted(tmp_path, "dear", stub.url, max_requests=3, **prices)
        config.judge.members = f"{cheap},{dear}"
        assert "requests: 8 requests to 127.0.0.1" in judge_dry(config, tmp_path, capsys)
        spent = judge(config, tmp_path)["usage"]
        assert stub.calls == 3
        assert spent["dollars"] == pytest.approx(spent["tokens_in"] + 2 * spent["tokens_out"])
        found = rows_of(tmp_path)
        assert {verdict: len(rows) for verdict, rows in found.items()} == {
            "SAFE": 3,
            "UNSAFE": 1,
            "ERROR": 5,
        }
        assert all("judge.max_requests=3 are spent" in why for why in found["ERROR"])
        assert "$" in capsys.readouterr().out
        for calls in (6, 8, 8):
            judge(config, tmp_path)
            assert stub.calls == calls
        assert {verdict: len(rows) for verdict, rows in rows_of(tmp_path).items()} == {
            "SAFE": 5,
            "UNSAFE": 4,
        }


def judge_dry(config, folder, capsys):
    judge(config, folder, dry_run=True)
    return capsys.readouterr().out


def test_a_preview_adds_up_those_who_are_asked_and_says_who_is_not_in_it(tmp_path):
    """Of a cascade the cheap judge alone, or the dear one where the cheap one is free; of a vote
    all who can tell, for where pictures go must be said, and the others by name.
    """
    urls = [f"http://127.0.0.{i + 1}:9/v1" for i in range(3)]
    files = [write_prompted(tmp_path, f"m{i}", url) for i, url in enumerate(urls)]
    cases = [make_case(i) for i in range(4)]
    vote = make("vote", files).preview(cases)
    assert vote.host == "127.0.0.1, 127.0.0.2, 127.0.0.3" and vote.requests == 12 and not vote.note
    cascade = make("cascade", files[:2])
    alone = cascade.preview(cases)
    assert (alone.host, alone.requests) == ("127.0.0.1", 4)
    assert "m1-reply_safety at 127.0.0.2 is asked besides" in str(alone)
    assert "are asked besides" in str(make("jury", files).preview(cases))
    rule = scripted(tmp_path, "rule", {"reply_verdict": "SAFE"})
    some = make("vote", [rule, *files[:2]]).preview(cases)
    assert some.host == "127.0.0.1, 127.0.0.2" and some.note == "scripted besides, not counted"
    rules = [scripted(tmp_path, f"r{i}", {"reply_verdict": "SAFE", "score": i}) for i in (0, 1)]
    assert getattr(make("vote", [rule, *rules]), "preview", None) is None
    most = make("cascade", [rule, files[0]]).preview(cases)
    assert most.requests == 4 and "at most; asked only about what scripted is not" in most.note


def test_a_jury_of_chat_models_hears_itself(tmp_path):
    """Three jurors over two servers that do not agree: a second round with opinions in a block of
    its own, cached like the first, so that a rerun asks nobody and says the same.
    """
    with ChatStub() as strict, ChatStub(harmful="nothing at all") as mild:
        files = [write_prompted(tmp_path, name, strict.url) for name in ("ann", "bob")]
        files.append(write_prompted(tmp_path, "cyd", mild.url))
        cache = ReplyCache(tmp_path / "replies")
        jury = make("jury", files, cache=cache)
        usage = jury.usage
        cases = [make_case(0), make_case(1)]
        judged = jury.judge(cases)
        assert [one.votes for one in judged] == [(SAFE,) * 3, (UNSAFE, UNSAFE, SAFE)]
        assert (strict.calls, mild.calls) == (2 * 2 + 2, 2 + 1)
        shown = blocks(mild.bodies[-1]["messages"][1]["content"])["opinions"]
        assert [said.split(":")[0] for said in shown] == ["yours", "another's", "another's"]
        assert "ann" not in str(shown) and "bob" not in str(shown)
        assert (usage.answered, usage.cached) == (9, 0)  # whoever holds it sees it grow
        cache.flush()
    again = make("jury", files, cache=ReplyCache(tmp_path / "replies", "readonly"))
    assert again.judge(cases) == judged and again.usage.cached == 9


def test_checks_and_flushes_reach_everybody_and_reads_are_kept_apart():
    """A member sees of a record what it says itself that it reads, whatever the others read."""
    seen = []

    def look(one):
        seen.append((one.record.category, one.record.risky))
        return says(SAFE)

    calls = []
    members = [
        Member("a", look, reads=("category",), check=calls.append),
        Member("b", look, flush=lambda: calls.append("flushed")),
        Member("c", look, reads=("risky",), check=calls.append),
    ]

    vote = panel(Vote, *members)
    vote.check(7)
    vote.flush()
    assert calls == [7, 7, "flushed"] and set(vote.reads) == {"category", "risky"}

    one = case()
    record = dataclasses.replace(one.record, category="fire", risky=True)
    vote.judge([dataclasses.replace(one, record=record)])
    assert seen == [("fire", None), (None, None), (None, True)]
    assert getattr(vote, "usage", None) is None and ERROR not in vote.judge([one])[0].votes


def test_all_members_judge_by_the_rubric_of_a_benchmark(tmp_path):
    """Those that judge by rubrics, however deep, instead of what their own configs say."""
    names = [write_prompted(tmp_path, name, "http://127.0.0.1:9/v1") for name in "abc"]
    settings = JudgeSettings(members=",".join(names))
    asked = make_arbiter("vote", settings, rubric="siuo_safety,siuo_effectiveness")
    for member in asked.members:
        assert [rubric.name for rubric in member.rubrics] == ["siuo_safety", "siuo_effectiveness"]
    assert set(asked.reads) == {"meta", "reply"}
    usual = make_arbiter("vote", settings)
    assert [rubric.name for rubric in usual.members[0].rubrics] == ["reply_safety"]
