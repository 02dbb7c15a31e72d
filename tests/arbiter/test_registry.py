"""make_arbiter: registered names, arbiters of a user's own, and what is no arbiter."""

from typing import Any

import pytest

from srpo_jax.arbiter.chat.reply_cache import ReplyCache
from srpo_jax.arbiter.registry import ARBITERS, make_arbiter
from srpo_jax.config.judging_sections import JudgeSettings
from srpo_jax.errors import UserError

OUTSIDE = """
class Kind:
    name = "kind"

    def judge(self, cases):
        return []

class Nameless(Kind):
    name = None

class Mute:
    name = "mute"

class Leaving(Kind):
    def __init__(self):
        raise SystemExit(0)

NUMBER = 5

class Asked(Kind):
    def __init__(self, model, base_url="", cache=None, allow_upload=False, *, settings):
        self.got = model, base_url, cache, allow_upload, settings.votes

class Needy(Kind):
    def __init__(self, url):
        self.url = url
"""


def test_make_arbiter_makes_the_named_one(tmp_path, monkeypatch):
    """A registered kind, or a class of a user's module; all else is one line with the kinds that
    there are or with what is missing.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arbiters_from_outside.py").write_text(OUTSIDE)
    (tmp_path / "cases.jsonl").write_text('{"key": "k", "reply_verdict": "SAFE"}\n')
    with pytest.raises(UserError, match=":1: 'key' is unknown"):
        make_arbiter("scripted", JudgeSettings(cases="cases.jsonl"))
    settings = JudgeSettings(model="judge", cases="cases.jsonl")
    panels = ("vote", "cascade", "jury", "graded")
    elsewhere = ("scripted", "policy", "guard", *panels)  # their own tests make them
    names = {k: make_arbiter(k, settings).name for k in ARBITERS if k not in elsewhere}
    assert names == {
        "ssui_mini": "ssui_mini",
        "prompted": "judge-reply_safety",
        "replay": "replay",
    }
    for kind in panels:  # tests/arbiter/combined has them with members
        with pytest.raises(UserError, match="judge.members is empty"):
            make_arbiter(kind, settings)
    assert make_arbiter("arbiters_from_outside:Kind").name == "kind"
    for kind, said in {
        "nope": "arbiter.kind='nope' does not exist; kinds: ssui_mini, prompted",
        "arbiters_from_outside:Nameless": "gives a Nameless without a name",
        "arbiters_from_outside:Mute": "gives a Mute without judge(cases)",
        "arbiters_from_outside:Needy": "calling it raises TypeError",
        "arbiters_from_outside:Leaving": "calling it raises SystemExit: 0",
        "arbiters_from_outside:NUMBER": "calling it raises TypeError",
    }.items():
        with pytest.raises(UserError) as caught:
            make_arbiter(kind)
        line = str(caught.value)
        assert said in line and line.startswith("arbiter.kind=") and "\n" not in line


def test_an_arbiter_gets_what_it_asks_for(tmp_path, monkeypatch):
    """Fields of the section by their names, the section, the cache, and what may leave."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arbiters_that_ask.py").write_text(OUTSIDE)
    cache = ReplyCache(tmp_path / "replies")
    settings = JudgeSettings(model="m", base_url="http://h/v1", votes=3)
    made: Any = make_arbiter("arbiters_that_ask:Asked", settings, cache=cache, allow_upload=True)
    assert made.got == ("m", "http://h/v1", cache, True, 3)
