"""Looks at held-out data during training: they change nothing, are the same after any stop, and
may end a run."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from srpo_jax.config.check import validate
from srpo_jax.config.convert import as_config
from srpo_jax.data_pipelines.records import Record, read_records, write_records
from srpo_jax.errors import UserError
from srpo_jax.export.export import sampling_params
from srpo_jax.inference.choice_scores import Choices, ChoiceScorer
from srpo_jax.inference.policy import load_policy
from srpo_jax.train.dry_run import dry_run
from srpo_jax.train.loop import train
from srpo_jax.train.setup import make_setup
from srpo_jax.train.validation.loss import ValidationLoss
from tests.support import ROOT, judged
from tests.support.tiny import picture, tiny_qwen2_5_vl
from tests.train.test_loop import make_config, parameters, rows, tree_record, without_times

STEPS, EVERY = 6, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, trees to train on, others to look at, and records with and without a path."""
    folder = tmp_path_factory.mktemp("world")
    tiny_qwen2_5_vl(folder / "model")
    judged.write_judged(folder / "trees", [tree_record(i) for i in range(9)])
    judged.write_judged(folder / "held_out", [tree_record(i) for i in range(20, 27)])
    picture(56, 56, seed=1).save(folder / "a.png")
    records = [
        Record("r0", ("a.png",), "What is it?", ("Look.", "Think."), "A kitchen.", risky=True),
        Record("r1", (), "Why?", ("Read it.",), "Because.", risky=False),
        Record("r2", (), "How?", (), "", risky=False),
    ]
    write_records(records, folder / "records.jsonl")
    return folder


def looking(world, **changes):
    config = make_config(world)
    config.eval.every = EVERY
    config.data.validation_trees = str(world / "held_out")
    for name, value in changes.items():
        section, _, leaf = name.partition("__")
        config[section][leaf] = value
    return config


class Evaluator:
    """One that says what a function says."""

    def __init__(self, says, *names):
        self.says, self.names, self.prepared = says, names, False

    def prepare(self):
        self.prepared = True

    def __call__(self, weights):
        assert self.prepared
        return self.says(weights)


def looks(workdir):
    return [row for row in without_times(rows(workdir)) if any("validation/" in n for n in row)]


def steps(workdir):
    return [row for row in without_times(rows(workdir)) if "loss" in row]


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """The run that looks and that nobody stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    train(looking(world), workdir)
    return workdir


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, parameters(one)[1], parameters(other)[1])
    assert without_times(rows(one)) == without_times(rows(other))


def test_a_look_changes_nothing(world, straight, tmp_path):
    """The same parameters and losses, bit for bit, as a run that does not look; it looks before the
    first step, every so many, and after the last one."""
    train(make_config(world), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, parameters(straight)[1], parameters(tmp_path)[1])
    assert steps(straight) == without_times(rows(tmp_path))
    found = looks(straight)
    assert [row["step"] for row in found] == [0, 2, 4, 6]
    names = ("loss", "loss_ref", "loss_exp", "accuracies", "margins")
    assert all(set(row) == {"step", *(f"validation/{name}" for name in names)} for row in found)
    assert len({row["validation/loss"] for row in found}) == 4


def test_the_loss_is_that_of_training(world, tmp_path):
    """Looked at after k steps, the trees that are trained on have the loss of step k + 1, where a
    batch is all of them."""
    config = looking(world, data__validation_trees=str(world / "trees"), eval__every=1)
    config.objective.pairing, config.train.steps = "all", 3
    batches = make_setup(config, tmp_path).batches
    config.pack.rows = len(batches.plan(0).rows)
    assert [len(batches.plan(epoch).rows) for epoch in (1, 2)] == [config.pack.rows] * 2
    train(config, tmp_path)
    trained, seen = steps(tmp_path), looks(tmp_path)
    for row, look in zip(trained, seen):
        for name in ("loss", "loss_ref", "loss_exp"):
            ours = row[name if name == "loss" else f"srpo/{name}"]
            assert look[f"validation/{name}"] == pytest.approx(ours, rel=1e-5)
        assert look["validation/accuracies"] == pytest.approx(row["rewards/accuracies"], rel=1e-5)


def test_records_have_the_loss_of_their_paths(world, tmp_path):
    """The mean over the records with a path of the token mean, by another program; what has no path
    is left to those that answer it."""
    changes = dict(data__validation_trees="", data__validation_records=str(world / "records.jsonl"))
    config = looking(world, train__steps=1, eval__every=1, **changes)
    seen = []

    def make(cfg, records, _):
        seen.append([record.id for record in records])
        return []

    train(config, tmp_path, make_evaluators=make)
    assert seen == [["r0", "r1", "r2"]]
    policy = load_policy(as_config(config))
    scorer = ChoiceScorer(policy.model, policy.params, batch=1)
    losses = []
    for record in read_records(world / "records.jsonl")[:2]:
        record, pieces = policy.reference(record)
        path = np.concatenate(pieces)
        asked = Choices(policy.encode(record), np.zeros(0, np.int32), (path,))
        losses.append(-float(scorer([asked])[0][0]) / len(path))
    assert looks(tmp_path)[0] == {
        "step": 0,
        "validation/loss_ref": pytest.approx(np.mean(losses), rel=1e-5),
    }


@pytest.mark.parametrize("at", [0, 1, 2])
def test_stopped_in_a_look_it_comes_again(world, straight, tmp_path, monkeypatch, at):
    """Whichever look it was, the curve and the parameters are those of a run that nobody stopped,
    each look once."""
    look, count = ValidationLoss.__call__, 0

    def dying(self, state):
        nonlocal count
        count += 1
        if count == at + 1:
            look(self, state)
            raise RuntimeError("killed")
        return look(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(ValidationLoss, "__call__", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(looking(world), tmp_path)
    train(looking(world), tmp_path)
    assert_same(tmp_path, straight)


def test_asked_to_leave_it_looks_when_it_goes_on(world, straight, tmp_path):
    """SIGTERM within a step after which a look is due: the step is saved without, and the look
    comes first when the run goes on."""
    sent = []

    def make(*_):
        def term(_):
            if not sent:
                sent.append(True)
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

        return [Evaluator(term)]

    config = looking(world, eval__every=1)
    with pytest.raises(SystemExit):
        train(config, tmp_path, make_evaluators=make)
    assert [row["step"] for row in looks(tmp_path)] == [0]
    train(looking(world), tmp_path)
    assert [row["step"] for row in looks(tmp_path)] == [0, 2, 4, 6]
    assert_same_ends(tmp_path, straight)


def assert_same_ends(one, other):
    jax.tree.map(np.testing.assert_array_equal, parameters(one)[1], parameters(other)[1])
    assert looks(one) == looks(other)


def test_asked_to_leave_at_the_end_it_looks_all_the_same(world, straight, tmp_path):
    """SIGTERM within the last step: the same command, which has nothing else to do, looks."""
    sent = []

    def make(*_):
        def term(_):
            sent.append(True)
            if len(sent) == 2:  # after step 5
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

        return [Evaluator(term)]

    with pytest.raises(SystemExit):
        train(looking(world, eval__every=5), tmp_path, make_evaluators=make)
    train(looking(world), tmp_path)
    assert looks(tmp_path)[-1] == looks(straight)[-1]


@pytest.mark.slow
def test_killed_in_a_look(world, straight, tmp_path):
    """SIGKILL, in a process of its own, which leaves no chance to write anything."""
    config = looking(world)
    code = (
        "import json, os, signal, sys\n"
        "from srpo_jax.config.convert import stored_config\n"
        "from srpo_jax.train.loop import train\n"
        "from srpo_jax.train.validation.loss import ValidationLoss\n"
        "look, seen = ValidationLoss.__call__, []\n"
        "def dying(self, state):\n"
        "    seen.append(state)\n"
        "    if len(seen) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return look(self, state)\n"
        "ValidationLoss.__call__ = dying\n"
        "train(stored_config(json.loads(sys.argv[1])), sys.argv[2])\n"
    )
    told = json.dumps(config.to_dict())
    done = subprocess.run([sys.executable, "-c", code, told, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    train(config, tmp_path)
    assert_same(tmp_path, straight)


def scripted(values):
    """(make_evaluators, the steps' values as they were asked for): a rate that goes as told."""
    asked = []

    def make(*_):
        def rate(_):
            asked.append(values[len(asked)])
            return {"safety_rate": asked[-1]}

        return [Evaluator(rate, "safety_rate")]

    return make, asked


def test_patience_ends_a_run(world, tmp_path, capsys):
    """After so many looks without a better value; the best step stays on disk; started again it has
    nothing to do, and with more patience it goes on."""
    changes = dict(
        train__best_metric="validation/safety_rate",
        train__keep_best=1,
        train__keep=1,
        train__patience=2,
        train__steps=8,
        train__schedule="constant",
    )
    config = looking(world, **changes)
    validate_sections(config)
    make, asked = scripted([40.0, 60.0, 59.0, 50.0])
    summary = train(config, tmp_path, make_evaluators=make)
    assert summary["step"] == 6 and asked == [40.0, 60.0, 59.0, 50.0]
    assert "was no better than 60.0 at 2 looks" in capsys.readouterr().out
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {"2", "6"}, kept
    before = rows(tmp_path)
    again = train(config, tmp_path, make_evaluators=scripted([])[0])
    assert again["step"] == 6 and rows(tmp_path) == before
    config.train.patience = 5
    make, asked = scripted([70.0])
    assert train(config, tmp_path, make_evaluators=make)["step"] == 8 and asked == [70.0]


def validate_sections(config):
    """What only the command line checks."""
    validate(config, ("data.train_records", "data.test_records", "arbiter.kind"))


def test_what_cannot_choose_is_told(world, tmp_path):
    """Early stopping by a training metric, by none that is looked at, or by what the run does not
    have; nothing to look at."""
    for changes, why in (
        (dict(train__patience=1), "early stopping needs a metric of held-out data"),
        (
            dict(train__patience=1, train__best_metric="validation/loss", eval__every=0),
            "eval.every is 0",
        ),
    ):
        with pytest.raises(UserError, match=why):
            validate_sections(looking(world, **changes))
    rate = dict(train__patience=1, train__best_metric="validation/safety_rate")
    said = refused(looking(world, **rate), tmp_path)
    assert "does not have; there is validation/accuracies, " in said
    said = refused(looking(world, data__validation_trees=""), tmp_path)
    assert "nothing to look at: give data.validation_records" in said
    said = refused(looking(world, data__validation_trees=str(world / "none")), tmp_path)
    assert "none" in said and "srpo explore" in said

    said = refused(looking(world, eval__benchmarks="rsbench"), tmp_path)
    assert "eval.benchmarks=rsbench is looked at by `srpo train`" in said

    def none(*_):
        raise UserError("this cannot be asked")

    assert refused(looking(world), tmp_path, none) == "this cannot be asked"


def refused(config, folder, make_evaluators=None):
    """What a run says that does not start, which its dry run says before it, writing nothing."""
    said, workdir = [], folder / "refused"
    for start in (dry_run, train):
        with pytest.raises(UserError) as error:
            start(config, workdir, make_evaluators=make_evaluators)
        said.append(str(error.value))
        assert start is train or not workdir.exists()
    shutil.rmtree(workdir, ignore_errors=True)
    assert said[0] == said[1]
    return said[0]


def test_a_dry_run_makes_what_looks_and_no_look(world, tmp_path):
    """What is written of questions while it is made goes elsewhere."""
    made = []

    def make(cfg, records, workdir):
        workdir.mkdir(exist_ok=True)
        (workdir / "picture.png").touch()
        made.append(Evaluator(None))
        return made

    before = {path for path in world.rglob("*")}
    said = dry_run(looking(world), tmp_path / "run", make_evaluators=make)
    assert "nothing was written" in said
    assert len(made) == 1 and not made[0].prepared
    assert not list(tmp_path.iterdir()) and before == {path for path in world.rglob("*")}


def test_what_tests_does_not_choose(world, tmp_path):
    """A question of the test set among those that stop a run, or choose its checkpoint, whatever
    its id and file are; to look at it alone is no choice."""
    records = read_records(world / "records.jsonl")
    renamed = [Record(**{**vars(records[0]), "id": "other", "steps": (), "reply": ""})]
    write_records(renamed, world / "test.jsonl")
    data = dict(
        data__validation_trees="",
        data__validation_records=str(world / "records.jsonl"),
        data__test_records=str(world / "test.jsonl"),
        train__steps=1,
    )
    for how in (dict(train__patience=3), dict(train__keep_best=1)):
        config = looking(world, train__best_metric="validation/loss_ref", **data, **how)
        said = refused(config, tmp_path)
        assert "1 validation questions, 'r0' first, are test quest" in said
    train(looking(world, **data), tmp_path / "b")


@pytest.mark.parametrize(
    "changes",
    [{}, dict(train__param_dtype="bfloat16"), dict(lora__rank=2)],
    ids=["float32", "bfloat16", "lora"],
)
def test_evaluators_get_what_an_export_has(world, tmp_path, changes):
    """The weights at the last look are those that sampling from the last checkpoint loads, bit for
    bit, and the training state is left as it is."""
    seen = []

    def make(*_):
        return [Evaluator(lambda weights: seen.append(jax.device_get(weights)) or {})]

    config = looking(world, train__steps=2, **changes)
    train(config, tmp_path, make_evaluators=make)
    step, expected = sampling_params(config, tmp_path)
    assert step == 2 and len(seen) == 2
    jax.tree.map(np.testing.assert_array_equal, seen[-1], jax.device_get(expected))
