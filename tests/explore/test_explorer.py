"""Branches are read together with what they follow, and a policy that cannot be read is told."""

from __future__ import annotations

import pytest

from srpo_jax.data_pipelines.records import read_records
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.errors import UserError
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from tests.support.small_world import RecitingEngine, write_world


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def saying(monkeypatch):
    """Returns a function that makes every branch say one of some texts."""
    monkeypatch.setattr(explorer, "Engine", RecitingEngine)
    return lambda *texts: monkeypatch.setattr(RecitingEngine, "LINES", texts)


def test_a_branch_is_read_with_its_prefix(config, saying, tmp_path):
    """Behind steps of a thinking: more thinking, a closing tag, a reply. The branch's own step and
    reply are found, whatever its point; the reference begins with the opening tag."""
    saying("One\nmore.\n</think>\n\nYes.")
    other = config.copy_and_resolve_references()
    other.format.kind = "think"
    trees = {tree["id"]: tree for tree in read_shards(explore(other, tmp_path))}
    for record in read_records(config.data.train_records):
        tree = trees[record.id]
        assert tree["path_format"]["kind"] == "think"
        assert {branch["at"] for branch in tree["branches"]} == set(range(len(record.steps)))
        for branch in tree["branches"]:
            assert (branch["step_texts"], branch["reply_text"]) == (["One\nmore."], "Yes.")
            assert branch["status"] == "ok"


def test_a_policy_that_does_not_follow_the_format_is_an_error(config, saying, tmp_path):
    """After 64 branches, more than half of them unreadable: the format and one text are named."""
    other = config.copy_and_resolve_references()
    saying("Certainly! Here is\nwhat you want.")
    explore(other, tmp_path / "few")  # 24 branches prove nothing
    other.explore.branches = 8
    with pytest.raises(UserError, match="format.kind=lines .*no_reply.*Certainly! Here is what"):
        explore(other, tmp_path / "many")
    saying("So.\nReply: Yes.")
    explore(other, tmp_path / "many")
