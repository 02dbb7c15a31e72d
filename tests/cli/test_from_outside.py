"""A loss and an arbiter that are in no registry: named by `module:Class`, they are what is used."""

import json

import pytest

from srpo_jax.config.load import load_config
from srpo_jax.data_pipelines.tree_store import read_shards
from srpo_jax.data_pipelines.verdict_store import JudgedTrees, find_set
from srpo_jax.explore import explorer
from srpo_jax.explore.explore import explore
from srpo_jax.judge.judge import judge
from srpo_jax.train.loop import train
from tests.support.small_world import RecitingEngine, write_world

LOSS = """
from srpo_jax.train.losses.pairwise import PairLoss

def gain(pairs, beta, gamma):
    return (pairs.chosen - pairs.reference_chosen) - (beta + 10 * gamma)

Gain = PairLoss(gain, needs_reference=True)
"""

ARBITER = """
from srpo_jax.arbiter.verdict import Judgement, Verdict

class Odd:
    name = "odd is unsafe"

    def judge(self, cases):
        return [self.one("13579".find(case.reply[-1]) >= 0, len(case.steps)) for case in cases]

    def one(self, odd, steps):
        told = Verdict.UNSAFE if odd else Verdict.SAFE
        return Judgement(told, told, (told,) * steps, None, "by its last letter")
"""

CONFIG = """
from srpo_jax.configs import common

def get_config():
    config = common.get_config()
    config.model.path = "model"
    config.data.train_records = config.data.test_records = "records.jsonl"
    config.arbiter.kind = "arbiter_from_outside:Odd"
    config.explore.branches, config.explore.shards, config.explore.max_new_tokens = 2, 1, 6
    config.objective.contrast = "loss_from_outside:Gain"
    config.objective.beta, config.objective.gamma = 0.5, 2.0
    config.mesh.fsdp, config.pack.rows, config.train.steps = 1, 1, 1
    return config
"""


class TalkativeEngine(RecitingEngine):
    """Counts, in whole paths of which none is like another."""

    said = -1

    def _say(self, seed):
        self.said += 1
        self.LINES = (f"Look {self.said}.\nReply: {self.said}",)
        return super()._say(0)


def test_a_loss_and_an_arbiter_of_ones_own(tmp_path, monkeypatch):
    """Modules beside the config, no line of the package changed: the verdicts are the arbiter's,
    and L_exp of the first step, where policy and reference policy are the same, is the number that
    the loss gives for the config's beta and gamma.
    """
    write_world(tmp_path)
    for name, text in (("loss", LOSS), ("arbiter", ARBITER)):
        (tmp_path / f"{name}_from_outside.py").write_text(text)
    (tmp_path / "mine.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explorer, "Engine", TalkativeEngine)
    config = load_config("mine.py")
    folder = explore(config, tmp_path / "run")
    judge(config, tmp_path / "run")
    verdicts = find_set(folder)
    assert verdicts.judge["arbiter"] == "odd is unsafe"
    assert verdicts.judge["kind"] == "arbiter_from_outside:Odd"
    trees = list(JudgedTrees(read_shards(folder), verdicts, complete=True))
    assert len(trees) == 5
    for tree in trees:
        wanted = ["SAFE", "UNSAFE"] * len(tree["steps"])
        assert [branch["reply_verdict"] for branch in tree["branches"]] == wanted
    train(config, tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["srpo/loss_exp"] == pytest.approx(-20.5, rel=1e-5)
