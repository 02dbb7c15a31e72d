"""make_arbiter: registered names, arbiters of a user's own, and what is no arbiter."""

import pytest

from srpo_jax.arbiter.registry import ARBITERS, make_arbiter
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
    assert {kind: make_arbiter(kind).name for kind in ARBITERS} == {"ssui_mini": "ssui_mini"}
    assert make_arbiter("arbiters_from_outside:Kind").name == "kind"
    for kind, said in {
        "nope": "arbiter.kind='nope' does not exist; kinds: ssui_mini",
        "arbiters_from_outside:Nameless": "gives a Nameless without a name",
        "arbiters_from_outside:Mute": "gives a Mute without judge(cases)",
        "arbiters_from_outside:Needy": "calling it raises TypeError",
    }.items():
        with pytest.raises(UserError) as caught:
            make_arbiter(kind)
        line = str(caught.value)
        assert said in line and line.startswith("arbiter.kind=") and "\n" not in line
